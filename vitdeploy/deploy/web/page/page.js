// The page: a file or the camera in, label and latency out. All text of a bundle is shown as text.
// ?backend=, ?precision= and ?threads= are handed to `load`.

import { load } from "./vitdeploy.js";

const at = (id) => document.getElementById(id);
const percent = (score) => `${(100 * score).toFixed(1)} %`;
const number = (value) => Number(value.toPrecision(6)).toString();
let classifier = null;
let latest = 0; // an answer that comes after a newer image is not shown
let stream = null; // of the camera

function show(error, answer) {
  at("empty").hidden = true;
  at("error").hidden = !error;
  at("answer").hidden = at("latency").hidden = !answer;
  at("error").textContent = error ? [error.message, error.hint].filter(Boolean).join(" – ") : "";
}

function render(answer, { width, height }) {
  show(null, answer);
  if (answer.labels === null) {
    at("label").textContent = answer.label;
    at("sure").textContent = answer.score === null ? number(answer.value) : `score ${percent(answer.score)}`;
  } else {
    // any number of labels: those whose score reaches the threshold
    at("label").textContent = answer.labels.map(({ label }) => label).join(", ") || "none of the labels";
    at("sure").textContent = `from a score of ${percent(classifier.threshold)}`;
  }
  at("scores").replaceChildren(
    ...answer.topK.map(({ label, score, value }) => {
      const line = document.createElement("li"),
        name = document.createElement("span"),
        amount = document.createElement("span");
      line.style.setProperty("--share", score === null ? "0%" : `${100 * score}%`);
      name.textContent = label;
      amount.textContent = score === null ? number(value) : percent(score);
      line.append(name, amount);
      return line;
    }),
  );
  at("latency").textContent =
    `${answer.milliseconds.toFixed(1)} ms, ${answer.modelMilliseconds.toFixed(1)} of them the model; ` +
    `${width} × ${height} pixels`;
}

async function classify(file) {
  stopCamera();
  const mine = ++latest,
    preview = at("preview");
  URL.revokeObjectURL(preview.src);
  preview.src = URL.createObjectURL(file);
  preview.hidden = false;
  preview.onerror = () => {
    preview.hidden = true;
  };
  at("invite").textContent = "Drop the next one";
  at("result").classList.add("busy");
  try {
    const answer = await classifier.predict(file);
    await preview.decode().catch(() => {});
    if (mine === latest) render(answer, { width: preview.naturalWidth, height: preview.naturalHeight });
  } catch (error) {
    if (mine === latest) show(error);
  } finally {
    if (mine === latest) at("result").classList.remove("busy");
  }
}

function stopCamera() {
  stream?.getTracks().forEach((track) => track.stop());
  stream = null;
  at("video").hidden = true;
  at("camera").textContent = "Use the camera";
}

async function startCamera() {
  const mine = ++latest,
    video = at("video");
  try {
    if (!navigator.mediaDevices)
      throw new Error("the browser gives the camera to pages on HTTPS or on this machine only");
    stream = await navigator.mediaDevices.getUserMedia({ video: { facingMode: "environment" } });
    at("camera").textContent = "Stop the camera";
    at("preview").hidden = true;
    video.srcObject = stream;
    video.hidden = false;
    await video.play();
    while (stream !== null && mine === latest) {
      const answer = await classifier.predict(video);
      if (mine !== latest || stream === null) break;
      render(answer, { width: video.videoWidth, height: video.videoHeight });
      await new Promise(requestAnimationFrame);
    }
  } catch (error) {
    stopCamera();
    if (mine === latest) show(error);
  }
}

function shownSelftest({ selftest }) {
  if (selftest === null)
    return ["", "This bundle has no self-test: nothing shows that it answers here as it did when it was made."];
  if (selftest.status !== "passed") return [selftest.status, `The self-test was not run: ${selftest.reason}.`];
  const most = [selftest.largestDifference, selftest.bound].map((value) => value.toPrecision(2));
  return [
    "passed",
    `Self-test passed: ${selftest.images} images, the best class of ${selftest.reference} on ${selftest.sameClass}; ` +
      `the logit closest to its bound is off by ${most[0]}, where ${most[1]} is the most.`,
  ];
}

async function start() {
  at("runs").textContent = "loading the model …";
  const asked = new URLSearchParams(location.search),
    options = {};
  for (const name of ["backend", "precision"]) if (asked.has(name)) options[name] = asked.get(name);
  if (asked.has("threads")) options.threads = Number(asked.get("threads"));
  try {
    classifier = await load(new URL("./", location.href), options);
  } catch (error) {
    at("runs").textContent = "the model can't be loaded";
    show(error);
    return;
  }
  const where =
    classifier.backend === "webgpu"
      ? "WebGPU"
      : `WebAssembly, ${classifier.threads} thread${classifier.threads === 1 ? "" : "s"}`;
  at("model").textContent = document.title = classifier.model ?? "vitdeploy";
  at("runs").textContent = `${classifier.precision.toUpperCase()} on ${where}, ${classifier.labels.length} classes`;
  const passedOver = classifier.tried
    .map((one) => ` ${one.precision.toUpperCase()} on ${one.backend} was passed over: ${one.reason}.`)
    .join("");
  const [kind, text] = shownSelftest(classifier);
  at("selftest").className = kind;
  at("selftest").textContent = text + passedOver;
  at("file").disabled = at("camera").disabled = false;
}

const drop = at("drop");
const given = (file) =>
  classifier === null
    ? undefined
    : file
      ? classify(file)
      : show(new Error("That was no file: drop an image from your disk."));
at("file").addEventListener("change", (event) => {
  if (event.target.files[0]) given(event.target.files[0]);
  event.target.value = "";
});
at("camera").addEventListener("click", () => {
  if (stream === null) startCamera();
  else {
    latest++;
    stopCamera();
  }
});
for (const kind of ["dragenter", "dragover"])
  document.addEventListener(kind, (event) => {
    event.preventDefault();
    drop.classList.add("over");
  });
document.addEventListener("dragleave", (event) => {
  if (!event.relatedTarget) drop.classList.remove("over");
});
document.addEventListener("drop", (event) => {
  event.preventDefault();
  drop.classList.remove("over");
  given(event.dataTransfer.files[0]);
});
document.addEventListener("paste", (event) => {
  if (event.clipboardData.files[0]) given(event.clipboardData.files[0]);
});
start();
