// What a model's logits mean: softmax, a sigmoid each, or plain numbers, as vitdeploy's Python has it.

import { VitdeployError } from "./pixels.js";

const ACTIVATIONS = {
  softmax(logits) {
    const most = logits.reduce((a, b) => Math.max(a, b), -Infinity);
    const powers = Array.from(logits, (logit) => Math.exp(logit - most));
    const total = powers.reduce((a, b) => a + b, 0);
    return powers.map((power) => power / total);
  },
  sigmoid(logits) {
    return Array.from(logits, (logit) => 0.5 * (1 + Math.tanh(0.5 * logit))); // does not overflow
  },
};

/** Where the k largest are; of equal ones the first comes first. */
export function best(logits, k) {
  const order = Array.from(logits, (_, index) => index);
  return order.sort((a, b) => logits[b] - logits[a] || a - b).slice(0, k);
}

/**
 * The prediction of one image.
 * @param {Float32Array} logits  one number a class
 * @param {object} site          labels, activation and threshold of site.json
 * @param {number} topK          how many of the best classes
 * @returns {{label: string, index: number, score: ?number, value: ?number, topK: object[], labels: ?object[]}}  labels:
 *          where an image may have several, those that it has, the best first: all whose score reaches the threshold
 */
export function prediction(logits, site, topK) {
  if (!logits.every(Number.isFinite)) {
    throw new VitdeployError(
      "the model gives class scores that are not finite",
      'load another form: {precision: "fp32"}',
    );
  }
  const scores = site.activation === null ? null : ACTIVATIONS[site.activation](logits);
  const named = (index) => ({
    label: site.labels[index],
    index,
    score: scores === null ? null : scores[index],
    value: scores === null ? logits[index] : null,
  });
  const order = best(logits, logits.length);
  const top = order.slice(0, topK).map(named);
  const threshold = site.threshold ?? null; // only where an image may have several labels
  const labels = threshold === null ? null : order.filter((index) => scores[index] >= threshold).map(named);
  return { ...top[0], topK: top, labels };
}
