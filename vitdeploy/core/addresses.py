"""Addresses that people give where a name or a path is wanted."""

from __future__ import annotations

import re

__all__ = ["hub_hint", "is_address"]

_ADDRESS = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+://")
_ON_THE_HUB = re.compile(r"https?://(?:www\.)?(?:huggingface\.co|hf\.co)/(?:datasets/)?([\w.-]+/[\w.-]+)(?:[/?#].*)?")


def is_address(text: str) -> bool:
    """Whether text is a URL, which is never fetched."""
    return _ADDRESS.match(text) is not None


def hub_hint(address: str, what: str) -> str:
    """What to give in the place of the address of a page: a name on the Hub, or a folder.

    Example:
        hub_hint("https://huggingface.co/google/vit-base-patch16-224", "checkpoint")
        # "name it as the Hub does: google/vit-base-patch16-224"
    """
    found = _ON_THE_HUB.fullmatch(address)
    if found is not None:
        return f"name it as the Hub does: {found[1]}"
    return f"download it first, or give the name of a {what} on the Hugging Face Hub (owner/name)"
