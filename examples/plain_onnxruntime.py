"""A bundle without vitdeploy: python examples/plain_onnxruntime.py bundles/vit/model.onnx cat.png"""

import sys

import numpy as np
import onnxruntime
from PIL import Image

session = onnxruntime.InferenceSession(sys.argv[1])
pixels = np.asarray(Image.open(sys.argv[2]).convert("RGB"))  # uint8 (height, width, 3); the graph does the rest
logits = session.run(["logits"], {"image": pixels[np.newaxis]})[0][0]
scores = np.exp(logits - logits.max()) / np.exp(logits - logits.max()).sum()  # for the task single_label
for index in np.argsort(-scores)[:5]:
    print(f"{index}\t{scores[index]:.6f}")  # `labels` in manifest.json says what the index stands for
