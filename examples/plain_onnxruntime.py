"""A bundle without vitdeploy: python examples/plain_onnxruntime.py bundles/vit/model.onnx cat.png"""

import json
import sys
from pathlib import Path

import numpy as np
import onnxruntime
from PIL import Image

manifest = json.loads(Path(sys.argv[1]).with_name("manifest.json").read_text(encoding="utf-8"))
task = manifest["task"]
pixels = np.asarray(Image.open(sys.argv[2]).convert("RGB"))  # uint8 (height, width, 3); the graph does the rest
output = "embedding" if task == "embedding" else "logits"
options = onnxruntime.SessionOptions()
if "vnni" not in Path("/proc/cpuinfo").read_text(encoding="utf-8"):  # such x86 saturates in INT8 if it isn't told
    options.add_session_config_entry("session.x64quantprecision", "1")
session = onnxruntime.InferenceSession(sys.argv[1], options)
answer = session.run([output], {"image": pixels[np.newaxis]})[0][0].astype(float)
if task == "embedding":
    print(*answer)  # a vector, and no classes
    sys.exit()
powers = np.exp(answer - answer.max())  # one class is right: softmax; a regression: the numbers; else a sigmoid each
scores = {"single_label": powers / powers.sum(), "regression": answer}.get(task, 1 / (1 + np.exp(-answer)))
least = manifest.get("threshold", 0.5) if task in ("multi_label", "binary") else np.inf  # of several labels
for index in np.argsort(-scores)[:5]:  # `labels` in manifest.json says what the index stands for
    print(f"{index}\t{scores[index]:.6f}" + "\tyes" * bool(scores[index] >= least))  # "yes": the image has that label
