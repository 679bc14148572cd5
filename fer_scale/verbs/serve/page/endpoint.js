// Asking the endpoint, and what to say where it refuses.

import { $, make, megabytes, state } from "./dom.js";

export async function ask(path, options = {}) {
  for (let attempt = 0; ; attempt += 1) {
    const token = sessionStorage.getItem("token");
    const headers = { ...options.headers, ...(token ? { Authorization: `Bearer ${token}` } : {}) };
    let response;
    try {
      response = await fetch(path, { ...options, headers });
    } catch {
      throw { type: "urn:fer-scale:problem:unreachable" };
    }
    if (response.ok) return response.json();
    const problem = await response.json().catch(() => ({ detail: `${response.status} ${response.statusText}` }));
    if (response.status === 401 && (await askForToken())) continue;
    if (response.status === 503 && attempt < 2) {
      await new Promise((done) => setTimeout(done, 1000 * (Number(response.headers.get("Retry-After")) || 1)));
      continue;
    }
    throw problem;
  }
}

let asking = null;
function askForToken() {
  asking ??= new Promise((done) => {
    const dialog = $("token");
    $("token-value").value = "";
    dialog.returnValue = "";
    dialog.addEventListener("close", () => {
      const value = $("token-value").value.trim();
      const use = dialog.returnValue === "ok" && value !== "";
      if (use) sessionStorage.setItem("token", value);
      asking = null;
      done(use);
    }, { once: true });
    dialog.showModal();
  });
  return asking;
}

export async function predict(blob, faces) {
  const type = blob.type.startsWith("image/") ? blob.type : "application/octet-stream";
  const query = faces === "detect" ? "?faces=detect" : "";
  return ask(`v1/predict${query}`, { method: "POST", body: blob, headers: { "Content-Type": type } });
}

function kindly(problem) {
  const kind = (problem.type || "").split(":").pop();
  const limits = state.model?.limits;
  switch (kind) {
    case "image-unreadable":
      return "That is not a picture the model can read. JPEG, PNG, WebP, GIF, BMP and TIFF work.";
    case "image-too-large":
      return "That picture has too many pixels. A smaller copy of it will do: the model looks at a small one anyway.";
    case "body-too-large":
      return limits ? `That is more than ${megabytes(limits.max_bytes)}. A smaller copy of it will do.` : "That file is too large.";
    case "empty":
      return "That file is empty.";
    case "overloaded":
    case "timeout":
    case "unavailable":
      return "The endpoint has its hands full. Try again in a moment.";
    case "no-detector":
      return "This endpoint cannot find faces. Give it pictures of one face each.";
    case "token":
      return "The endpoint did not take that token.";
    case "unreachable":
      return "The endpoint does not answer. It may be starting, or it was stopped.";
    default:
      return "The endpoint could not answer that.";
  }
}

export function complain(problem) {
  $("alert").replaceChildren(kindly(problem));
  if (problem.detail) {
    $("alert").append(make("small", "", problem.detail));
  }
  $("alert").hidden = false;
}
