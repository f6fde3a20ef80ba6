// Images as pages have them -> uint8 RGB pixels in rows. Nothing is resized here: that is in the graph.

/** Something the user can act on: `message` says what failed, `hint` what to do next. */
export class VitdeployError extends Error {
  constructor(message, hint) {
    super(message);
    this.name = "VitdeployError";
    this.hint = hint;
  }
}

/**
 * The pixels of an image.
 *
 * A file (Blob) is decoded as it is, turned as its EXIF says and without a change of colours; what is transparent is
 * laid over white. An <img>, <video>, <canvas>, ImageBitmap or VideoFrame gives what it shows, in its own size. An
 * object {data, width, height}, such as an ImageData, has RGB or RGBA bytes in rows.
 * @returns {Promise<{data: Uint8Array, width: number, height: number}>}  RGB
 */
export async function toPixels(image, maxPixels) {
  if (typeof Blob !== "undefined" && image instanceof Blob) return ofFile(image, maxPixels);
  if (image?.data?.length !== undefined) return ofBytes(image, maxPixels);
  if (typeof document === "undefined" && typeof OffscreenCanvas === "undefined") throw unusable();
  if (typeof HTMLImageElement !== "undefined" && image instanceof HTMLImageElement && !image.complete)
    await image.decode();
  return drawn(image, maxPixels);
}

async function ofFile(file, maxPixels) {
  let bitmap;
  try {
    bitmap = await createImageBitmap(file, { colorSpaceConversion: "none", imageOrientation: "from-image" });
  } catch (error) {
    throw new VitdeployError(
      `${file.name ?? "the file"} is not an image that this browser reads`,
      "take a JPEG, PNG or WebP file",
    );
  }
  try {
    return drawn(bitmap, maxPixels);
  } finally {
    bitmap.close();
  }
}

function drawn(image, maxPixels) {
  const [width, height] = [
    image?.videoWidth ?? image?.naturalWidth ?? image?.displayWidth ?? image?.width,
    image?.videoHeight ?? image?.naturalHeight ?? image?.displayHeight ?? image?.height,
  ];
  if (typeof width !== "number" || typeof height !== "number") throw unusable();
  checkSize(width, height, maxPixels);
  const context = canvas(width, height).getContext("2d", { willReadFrequently: true });
  context.imageSmoothingEnabled = false;
  context.fillStyle = "#fff";
  context.fillRect(0, 0, width, height);
  try {
    context.drawImage(image, 0, 0, width, height);
  } catch (error) {
    throw error instanceof TypeError
      ? unusable()
      : new VitdeployError(`the image can't be drawn: ${error.message}`, "wait until it is loaded");
  }
  let data;
  try {
    ({ data } = context.getImageData(0, 0, width, height));
  } catch (error) {
    throw new VitdeployError(
      "the browser keeps the pixels of an image from another site",
      "serve it with CORS headers, and set crossOrigin",
    );
  }
  return { data: rgb(data, width * height), width, height };
}

function canvas(width, height) {
  if (typeof OffscreenCanvas !== "undefined") return new OffscreenCanvas(width, height);
  return Object.assign(document.createElement("canvas"), { width, height });
}

function ofBytes({ data, width, height }, maxPixels) {
  const pixels = width * height;
  if (
    !Number.isInteger(width) ||
    !Number.isInteger(height) ||
    ![3, 4].includes(data.length / pixels) ||
    data.BYTES_PER_ELEMENT !== 1
  ) {
    throw new VitdeployError(
      `${data.length} values are not an image of ${height}x${width}`,
      "give {data, width, height}, where data is a Uint8Array or Uint8ClampedArray of RGB or RGBA",
    );
  }
  checkSize(width, height, maxPixels);
  return { data: data.length === 4 * pixels ? rgb(data, pixels) : Uint8Array.from(data), width, height };
}

/** RGBA over white -> RGB, rounded as Pillow's alpha_composite does. */
function rgb(rgba, pixels) {
  const made = new Uint8Array(3 * pixels);
  for (let from = 0, to = 0; to < made.length; from += 4) {
    const alpha = rgba[from + 3];
    for (let channel = 0; channel < 3; channel++) {
      const value = rgba[from + channel];
      made[to++] = alpha === 255 ? value : overWhite(value, alpha);
    }
  }
  return made;
}

function overWhite(value, alpha) {
  const sum = 128 * (value * alpha + 255 * (255 - alpha)) + 0x4000; // in 1/128 of 255ths
  return ((sum >> 8) + sum) >> 15;
}

function checkSize(width, height, maxPixels) {
  if (width < 1 || height < 1)
    throw new VitdeployError(
      `the image has no pixels (${height}x${width})`,
      "wait until it is loaded, or the video has a frame",
    );
  if (width * height > maxPixels)
    throw new VitdeployError(`the image is too large: ${height}x${width} pixels`, `at most ${maxPixels} are taken`);
}

const unusable = () =>
  new VitdeployError(
    "that is not an image",
    "give a file, <img>, <video>, <canvas>, ImageBitmap, VideoFrame, or {data, width, height} of RGB or RGBA bytes",
  );
