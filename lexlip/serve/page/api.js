// What the service is asked. Every path begins at "/": nothing is fetched from anywhere else.

export class Refused extends Error {
  constructor(status, message) {
    super(message);
    this.status = status;
  }
}

// What the service sends, unless it refuses.
async function accepted(promise) {
  let response;
  try {
    response = await promise;
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Refused(0, "The service does not answer.");
  }
  if (response.ok) return response;
  const body = await response.json().catch(() => ({}));
  throw new Refused(response.status, body.error?.message ?? `The service answered ${response.status}.`);
}

async function answer(promise) {
  return (await accepted(promise)).json().catch(() => ({}));
}

const post = (path, body, signal) =>
  answer(fetch(path, { method: "POST", headers: { "content-type": "application/json" }, body: JSON.stringify(body), signal }));

export const HIT_WORDS = 24;

export const search = (fields, signal) => post("/search", { ...fields, hit_words: HIT_WORDS }, signal);

export function searchByPhoto(file, k, signal) {
  const form = new FormData();
  form.set("image", file, "photo");
  form.set("k", k);
  form.set("hit_words", HIT_WORDS);
  return answer(fetch("/search", { method: "POST", body: form, signal }));
}

export const about = () => answer(fetch("/about"));

export const suggest = (prefix, limit, signal) =>
  answer(fetch("/words?" + new URLSearchParams({ prefix, limit }), { signal }));

// Patches of all words of a photo at once: the photo is looked at once, and each hover is free after that.
const patches = new Map();
const KEPT = 200;

export function patchesOf(id, words) {
  const key = JSON.stringify([id, words]);
  if (!patches.has(key)) {
    const asked = post("/explain", { words: { [words[0]]: 1 }, id, patches: words }).then((found) => found.patches);
    asked.catch(() => patches.delete(key));
    patches.set(key, asked);
    if (patches.size > KEPT) patches.delete(patches.keys().next().value);
  }
  return patches.get(key);
}

const path = (id) => String(id).split("/").map(encodeURIComponent).join("/");

export const thumbnail = (id, side) => `/thumbnail/${path(id)}?side=${side}`;
export const image = (id) => `/image/${path(id)}`;
export const video = (id) => `/video/${path(id)}`;

// Refused where the service does not send the video.
export async function reachVideo(id) {
  const response = await accepted(fetch(video(id), { headers: { range: "bytes=0-0" } }));
  await response.body?.cancel(); // some proxies send all of it
}
