// The bundle's self-test: does a form answer here as when it was made? The rules are those of `vitdeploy verify`.

import { best } from "./scores.js";

/**
 * Run the self-test through a form.
 * @param {object} selftest  selftest.json
 * @param {object} form      the form's entry of site.json
 * @param {function({data: Uint8Array, width: number, height: number}): Promise<Float32Array>} infer
 * @returns {Promise<{status: string, reason: ?string, images: number, sameClass: number, largestDifference: ?number,
 *                    bound: ?number, reference: string}>}  status: passed, failed or skipped; largestDifference and
 *          bound are those of the image that is closest to its bound, or furthest beyond
 */
export async function judge(selftest, form, infer) {
  const row = {
    status: "skipped",
    reason: null,
    images: 0,
    sameClass: 0,
    largestDifference: null,
    bound: null,
    reference: selftest.reference,
  };
  if (form.bounds === null) return { ...row, reason: "the self-test has no bounds for this form" };
  const asked = questions(selftest, form);
  if (asked.places.length === 0)
    return { ...row, reason: "no image of the self-test is of a size that this form takes" };
  let worst = 0;
  for (const place of asked.places) {
    const expected = asked.values[place];
    const logits = await infer(pixels(selftest.images[place], asked.size));
    row.images++;
    if (logits.length !== expected.length)
      return { ...row, status: "failed", reason: `it gives ${logits.length} scores, not ${expected.length}` };
    if (!logits.every(Number.isFinite)) return { ...row, status: "failed", reason: "its logits are not finite" };
    row.sameClass += best(logits, 1)[0] === best(expected, 1)[0];
    const difference = logits.reduce((most, logit, index) => Math.max(most, Math.abs(logit - expected[index])), 0);
    const bound = form.bounds[place];
    if (row.bound === null || difference / bound > row.largestDifference / row.bound) {
      [row.largestDifference, row.bound, worst] = [difference, bound, place];
    }
  }
  if (row.largestDifference > row.bound) {
    const [found, most] = [row.largestDifference, row.bound].map((value) => value.toPrecision(2));
    return {
      ...row,
      status: "failed",
      reason: `a logit of image ${worst} is off by ${found}, where ${most} is the most`,
    };
  }
  return { ...row, status: "passed" };
}

/** Of the sizes that images are enlarged to, the one of which the form takes the most. */
function questions(selftest, form) {
  const fits = (shape) => shape.every((edge, axis) => form.size[axis] === null || form.size[axis] === edge);
  const all = selftest.logits.map(({ size, values }) => ({
    size,
    values,
    places: selftest.images.flatMap(({ height, width }, place) => (fits(size ?? [height, width]) ? [place] : [])),
  }));
  return all.reduce((most, one) => (one.places.length > most.places.length ? one : most));
}

/** An image of the self-test, enlarged: row i is row i * height / rows, rounded down, columns likewise. */
function pixels({ height, width, rgb }, size) {
  const data = Uint8Array.from(atob(rgb), (letter) => letter.charCodeAt(0));
  if (size === null) return { data, width, height };
  const [rows, columns] = size;
  const made = new Uint8Array(3 * rows * columns);
  for (let row = 0, to = 0; row < rows; row++) {
    const line = Math.floor((row * height) / rows) * width;
    for (let column = 0; column < columns; column++) {
      const from = 3 * (line + Math.floor((column * width) / columns));
      for (let channel = 0; channel < 3; channel++) made[to++] = data[from + channel];
    }
  }
  return { data: made, width: columns, height: rows };
}
