// The stage: a picture or the camera, and over it the boxes or the square that is read.

import { $, make, state, tone } from "./dom.js";

const MOST_TAGS = 12; // of a crowd only the chosen face has its word beside it

export function stage(name) {
  $("stage").dataset.state = name;
  $("picture").hidden = name !== "picture";
  $("frame").hidden = true;
  $("boxes").hidden = true;
  $("unshown").hidden = name !== "unshown";
  $("video").hidden = name !== "camera";
  $("idle-actions").hidden = name === "camera";
  $("camera-actions").hidden = name !== "camera";
  document.querySelector(".empty").hidden = name !== "empty";
}

// How large a picture of this size is on the stage.
function fitted(width, height) {
  const { clientWidth, clientHeight } = $("stage");
  const scale = Math.min(clientWidth / width, clientHeight / height);
  return { width: `${width * scale}px`, height: `${height * scale}px` };
}

export function placeFrame(width, height) {
  $("boxes").hidden = true;
  $("frame").hidden = !width || Math.abs(width - height) < 2;
  if (!$("frame").hidden) Object.assign($("frame").style, fitted(width, height));
}

export function placeBoxes(faces, chosen, width, height, { mirrored = false, choose = null } = {}) {
  $("frame").hidden = true;
  $("boxes").hidden = false;
  Object.assign($("boxes").style, fitted(width, height));
  $("boxes").replaceChildren(...faces.map((face, at) => {
    const { x, y, width: w, height: h } = face.box;
    const box = make("div", `box${at === chosen ? " chosen" : ""}${face.accepted === false ? " review" : ""}`);
    const left = mirrored ? width - x - w : x;
    Object.assign(box.style, {
      left: `${(100 * left) / width}%`,
      top: `${(100 * y) / height}%`,
      width: `${(100 * w) / width}%`,
      height: `${(100 * h) / height}%`,
    });
    box.style.setProperty("--tone", tone(face.label));
    if (faces.length <= MOST_TAGS || at === chosen) {
      const tag = make("span", y < 0.1 * height ? "below" : "", face.label);
      tag.append(make("i", "", `${Math.round(100 * face.confidence)} %`));
      if (left + w / 2 > 0.7 * width) tag.classList.add("ends");
      box.append(tag);
    }
    if (choose) box.addEventListener("click", () => choose(at));
    return box;
  }));
}

// The square that the network is given of a face; as `square` of faces/detection.py does it.
function squareOf(box, width, height) {
  const { margin } = state.model.detection;
  const side = Math.min(Math.round(((1 + 2 * margin) * (box.width + box.height)) / 2), width, height);
  const inside = (at, most) => Math.min(Math.max(Math.round(at), 0), most - side);
  return [inside(box.x + (box.width - side) / 2, width), inside(box.y + (box.height - side) / 2, height), side];
}

function draw(canvas, source, width, height, box, mirrored) {
  const context = canvas.getContext("2d");
  const middle = Math.min(width, height);
  const [x, y, side] = box ? squareOf(box, width, height) : [(width - middle) / 2, (height - middle) / 2, middle];
  context.imageSmoothingQuality = "high";
  context.filter = state.model.preprocessing.channels === 1 ? "grayscale(1)" : "none";
  if (mirrored) context.setTransform(-1, 0, 0, 1, canvas.width, 0);
  context.drawImage(source, x, y, side, side, 0, 0, canvas.width, canvas.height);
}

export function showSeen(source, width, height, box = null, mirrored = false) {
  const { size, channels } = state.model.preprocessing;
  const canvas = $("input");
  canvas.width = canvas.height = size;
  draw(canvas, source, width, height, box, mirrored);
  const colours = channels === 1 ? "gray" : "in colour";
  const where = box ? "around the face" : "from the middle of the picture";
  $("seen-text").textContent = `${size} × ${size} pixels, ${colours}, ${where}`;
  $("seen").hidden = false;
}

// A face of the picture on the stage, small.
export function cutOut(box) {
  const canvas = make("canvas");
  canvas.width = canvas.height = 96;
  canvas.setAttribute("aria-hidden", "true");
  const picture = $("picture");
  const { naturalWidth: width, naturalHeight: height } = picture;
  if (!width) return canvas;
  const [x, y, side] = squareOf(box, width, height);
  canvas.getContext("2d").drawImage(picture, x, y, side, side, 0, 0, 96, 96);
  return canvas;
}
