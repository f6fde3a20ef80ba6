// Answers for the tests: node predict.mjs SITE < request.json > answers.json
//
// The request is {options, own, topK, images: [{data (base64), width, height}]}; own: take the npm package, not the
// site's copy. The answer is {backend, precision, threads, selftest, tried, answers: [prediction or {error, hint}],
// logits: [[number]]} or {error, hint}.

import { join } from "node:path";
import { pathToFileURL } from "node:url";

const site = process.argv[2];
const { load } = await import(pathToFileURL(join(site, "vitdeploy.js")));
const chunks = [];
for await (const chunk of process.stdin) chunks.push(chunk);
const request = JSON.parse(Buffer.concat(chunks).toString("utf-8"));
let answer;
try {
  const ort = request.own ? await import("onnxruntime-web") : undefined;
  const classifier = await load(site, { ...request.options, ort });
  const { backend, precision, selftest, tried, threads } = classifier;
  answer = { backend, precision, selftest, tried, threads, answers: [], logits: [] };
  for (const { data, width, height } of request.images) {
    const image = { data: new Uint8Array(Buffer.from(data, "base64")), width, height };
    try {
      answer.answers.push(await classifier.predict(image, { topK: request.topK ?? 5 }));
      if (image.data.length === 3 * width * height) answer.logits.push(Array.from(await classifier.logits(image)));
    } catch (error) {
      answer.answers.push({ error: error.message, hint: error.hint });
    }
  }
  await classifier.close();
} catch (error) {
  answer = { error: error.message, hint: error.hint };
}
process.stdout.write(JSON.stringify(answer));
