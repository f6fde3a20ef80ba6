// A vitdeploy bundle in a browser or in Node, by onnxruntime-web.
//
//   import { load } from "./vitdeploy.js";
//   const classifier = await load();
//   const answer = await classifier.predict(document.querySelector("img"));
//   console.log(answer.label, answer.score, answer.milliseconds);

import { VitdeployError, toPixels } from "./pixels.js";
import { prediction } from "./scores.js";
import { judge } from "./selftest.js";

export { VitdeployError };

/** The site itself is incomplete or was changed: no other form of it is taken. */
class SiteError extends VitdeployError {}

const SCHEMA_VERSION = 1;
const MOST_THREADS = 4; // more gain little for one image, and phones' further cores are slow
const HERE = new URL("./", import.meta.url);
const IN_NODE =
  typeof window === "undefined" && typeof importScripts === "undefined" && Boolean(globalThis.process?.versions?.node);

const started = new Set(); // runtimes: what they have of threads is settled
let last = Promise.resolve(); // onnxruntime-web does one thing at a time
function inTurn(work) {
  const mine = last.then(work);
  last = mine.catch(() => {});
  return mine;
}

/**
 * Open a site's model.
 *
 * The first form that can be opened here and passes the bundle's self-test is taken: on WebGPU where the browser has a
 * GPU for it, else in WebAssembly, INT8 first.
 * @param {string|URL} url        the site's folder; as a rule the one that this file lies in
 * @param {object} options
 * @param {string} options.backend    "webgpu", "wasm" or "auto"
 * @param {string} options.precision  "int8", "fp32" or "auto"
 * @param {number} options.threads    of WebAssembly, up to 4 as a rule; the first `load` of a page decides. One where
 *                                    the page is not cross-origin isolated
 * @param {boolean} options.selftest  false: don't run it
 * @param {object} options.ort        onnxruntime-web as the caller imported it, in place of the site's; in Node the
 *                                    site's runs one thread
 * @returns {Promise<Classifier>}
 * @throws {VitdeployError} the site is damaged, of a newer version, or has no form that runs here
 */
export async function load(url = HERE, { backend = "auto", precision = "auto", threads, selftest = true, ort } = {}) {
  if (threads !== undefined && (!Number.isInteger(threads) || threads < 1))
    throw new VitdeployError(`threads is ${threads}`, "give a whole number of at least 1");
  const base = await folder(url);
  const site = parsed(await fetched(new URL("site.json", base)), "site.json");
  if (site?.type !== "site" || !Array.isArray(site.forms))
    throw new VitdeployError(`${base} is not a site of vitdeploy`, "name the folder that vitdeploy deploy web wrote");
  if (site.schema_version > SCHEMA_VERSION)
    throw new VitdeployError(
      `${base} was written by a newer vitdeploy (${site.vitdeploy})`,
      "take that site's own vitdeploy.js",
    );
  const questions = selftest && site.selftest ? parsed(await hashed(base, site.selftest), site.selftest.file) : null;
  const tried = [];
  for (const candidate of await candidates(site, backend, precision)) {
    let session;
    try {
      session = await opened(base, candidate, { threads, ort });
      const classifier = new Classifier(site, candidate, session, tried);
      if (questions !== null) {
        classifier.selftest = await judge(questions, candidate.form, (image) => classifier.logits(image));
        if (classifier.selftest.status === "failed")
          throw new VitdeployError(`it fails the self-test: ${classifier.selftest.reason}`);
      }
      return classifier;
    } catch (error) {
      await session?.release();
      if (error instanceof SiteError) throw error;
      tried.push({
        precision: candidate.form.precision,
        backend: candidate.backend,
        reason: error?.message ?? String(error),
      });
    }
  }
  const reasons = tried.map((one) => `${one.precision} on ${one.backend}: ${one.reason}`).join("; ");
  throw new VitdeployError(
    reasons
      ? `no form of ${base} runs here: ${reasons}`
      : `${base} has no form for backend ${backend} and precision ${precision}`,
    `it has ${site.forms.map((form) => `${form.precision} for ${form.backends.join(" and ")}`).join(", ")}`,
  );
}

/** An open model. `form`, `precision`, `backend`, `threads`, `labels` and `task` say what it is, `threshold` from which
 *  score one of several labels counts (null: one class is right), `selftest` how it did (null: not run), `tried` which
 *  forms were passed over and why. */
export class Classifier {
  #site;
  #session;
  #runtime;

  constructor(site, { form, backend }, { session, runtime }, tried) {
    this.#site = site;
    this.#session = session;
    this.#runtime = runtime;
    this.form = form.file;
    this.precision = form.precision;
    this.backend = backend;
    this.threads = backend === "wasm" ? runtime.env.wasm.numThreads : null;
    this.model = site.model;
    this.labels = site.labels;
    this.threshold = site.threshold ?? null;
    this.task = site.task;
    this.size = form.size;
    this.batch = form.batch;
    this.selftest = null;
    this.tried = tried;
  }

  /**
   * Classify one image: see `toPixels` in pixels.js for what that can be.
   * @returns {Promise<{label: string, index: number, score: ?number, value: ?number, topK: object[], labels: ?object[],
   *                    milliseconds: number, modelMilliseconds: number}>}  milliseconds: reading the pixels and the
   *          model, without waiting for other calls
   */
  async predict(image, { topK = 5 } = {}) {
    if (!Number.isInteger(topK) || topK < 1)
      throw new VitdeployError(`topK is ${topK}`, "give a whole number of at least 1");
    const began = performance.now();
    const pixels = await toPixels(image, this.#site.max_pixels);
    const read = performance.now() - began;
    return inTurn(async () => {
      const started = performance.now();
      const logits = await this.#run(pixels);
      const modelMilliseconds = performance.now() - started;
      return { ...prediction(logits, this.#site, topK), milliseconds: read + modelMilliseconds, modelMilliseconds };
    });
  }

  /** The logits (Float32Array, one a class) of RGB pixels {data, width, height}. */
  logits(pixels) {
    return inTurn(() => this.#run(pixels));
  }

  /** Free its memory; what is being computed is finished. */
  close() {
    return inTurn(async () => {
      await this.#session?.release();
      this.#session = null;
    });
  }

  async #run({ data, width, height }) {
    if (this.#session === null) throw new VitdeployError("the classifier is closed", "load it again");
    const [rows, columns] = this.size;
    if ((rows ?? height) !== height || (columns ?? width) !== width) {
      throw new VitdeployError(
        `an image of ${height}x${width} is not what this form takes: height ${rows ?? "any"}, width ${columns ?? "any"}`,
        "resize it first, or export the bundle for any size",
      );
    }
    let batch = data;
    if (this.batch > 1) {
      // the graph takes no fewer: the same image again
      batch = new Uint8Array(this.batch * data.length);
      for (let place = 0; place < batch.length; place += data.length) batch.set(data, place);
    }
    const tensor = new this.#runtime.Tensor("uint8", batch, [this.batch, height, width, 3]);
    const { [this.#site.output]: output } = await this.#session.run({ [this.#site.input]: tensor }, [
      this.#site.output,
    ]);
    const logits = Float32Array.from(await output.getData());
    output.dispose();
    return logits.subarray(0, logits.length / this.batch);
  }
}

/** Forms and where to run them, the one to take first at the front. */
async function candidates(site, backend, precision) {
  const gpu = backend === "wasm" ? false : await hasWebGpu(backend === "webgpu");
  const found = ["webgpu", "wasm"].flatMap((name) =>
    site.forms.filter((form) => form.backends.includes(name)).map((form) => ({ form, backend: name })),
  );
  const wanted = found.filter(
    (one) => ["auto", one.backend].includes(backend) && ["auto", one.form.precision].includes(precision),
  );
  if (backend === "webgpu" && wanted.length && !gpu)
    throw new VitdeployError(
      "WebGPU is not to be had here",
      'take a browser with WebGPU on a machine with a GPU, or the backend "wasm"',
    );
  return wanted.filter((one) => gpu || one.backend !== "webgpu");
}

/** Whether the browser has a GPU for WebGPU; one that is emulated counts where it is asked for by name. */
async function hasWebGpu(emulated) {
  try {
    const adapter = await globalThis.navigator?.gpu?.requestAdapter();
    return Boolean(adapter) && (emulated || !(adapter.info?.isFallbackAdapter ?? adapter.isFallbackAdapter));
  } catch {
    return false;
  }
}

async function opened(base, { form, backend }, { threads, ort }) {
  const runtime = ort ?? (await import(new URL(`ort/ort.${backend}.min.mjs`, HERE)));
  if (!started.has(runtime)) {
    started.add(runtime);
    runtime.env.wasm.numThreads = mayHaveThreads(ort)
      ? (threads ?? Math.min(globalThis.navigator?.hardwareConcurrency ?? 1, MOST_THREADS))
      : 1;
    if (IN_NODE && !ort) runtime.env.wasm.wasmBinary = await fetched(new URL("ort/ort-wasm-simd-threaded.wasm", HERE));
  }
  const graph = await hashed(base, form);
  const externalData = await Promise.all(
    form.weights.map(async (file) => ({ path: file.file, data: await hashed(base, file) })),
  );
  const session = await inTurn(() =>
    runtime.InferenceSession.create(graph, { executionProviders: [backend], externalData }),
  );
  return { session, runtime, release: () => session.release() };
}

const mayHaveThreads = (ort) => (IN_NODE ? Boolean(ort) : Boolean(globalThis.crossOriginIsolated));

async function folder(url) {
  let text = String(url);
  if (IN_NODE && !/^[a-z][a-z0-9+.-]+:/i.test(text)) text = (await import("node:url")).pathToFileURL(text).href;
  return new URL(text.endsWith("/") ? text : `${text}/`, globalThis.document?.baseURI ?? HERE);
}

async function fetched(url) {
  if (url.protocol === "file:" && IN_NODE) {
    const { readFile } = await import("node:fs/promises");
    return readFile(url).catch((error) => {
      throw new SiteError(`can't read ${url}: ${error.message}`, "check the path");
    });
  }
  let response;
  try {
    response = await fetch(url);
  } catch (error) {
    throw new SiteError(`can't fetch ${url}: ${error.message}`, "check the address and the connection");
  }
  if (!response.ok)
    throw new SiteError(`can't fetch ${url}: ${response.status}`, "check that the whole site was copied");
  return new Uint8Array(await response.arrayBuffer());
}

/** A file of the site, compared with its SHA-256; a page that is neither on HTTPS nor on this machine can't compare. */
async function hashed(base, { file, sha256 }) {
  const url = new URL(file, base);
  if (!url.href.startsWith(base.href))
    throw new SiteError(`${file} leaves the site`, "write the site again: vitdeploy deploy web");
  const content = await fetched(url);
  if (globalThis.crypto?.subtle) {
    const digest = new Uint8Array(await crypto.subtle.digest("SHA-256", content));
    const found = Array.from(digest, (byte) => byte.toString(16).padStart(2, "0")).join("");
    if (found !== sha256)
      throw new SiteError(
        `${file} is not the file that site.json describes (its SHA-256 differs)`,
        "copy the whole site again",
      );
  }
  return content;
}

function parsed(content, name) {
  try {
    return JSON.parse(new TextDecoder().decode(content));
  } catch (error) {
    throw new SiteError(`${name} is not JSON: ${error.message}`, "copy the whole site again");
  }
}
