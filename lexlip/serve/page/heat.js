// Where on a photo a word is seen: what it says nothing of grows dark, the strongest patch gets a frame.

import { make } from "./dom.js";
import { patchesOf } from "./api.js";

const DARKEST = 0.66;

// The part of a photo that its element shows, in fractions: all of it, or the middle square.
function visible(width, height, square) {
  if (!square) return { left: 0, top: 0, right: 1, bottom: 1 };
  const x = (1 - Math.min(1, height / width)) / 2;
  const y = (1 - Math.min(1, width / height)) / 2;
  return { left: x, top: y, right: 1 - x, bottom: 1 - y };
}

const percent = (value) => `${(100 * value).toFixed(2)}%`;

export function clearHeat(holder) {
  holder.dataset.heat = "";
  holder.querySelectorAll(".heat").forEach((element) => element.remove());
}

// Shows the word on the photo in `holder`; the newest call wins, whatever comes back first.
export async function showHeat(holder, hit, word, square) {
  const photo = holder.querySelector("img");
  if (!photo?.naturalWidth) return;
  holder.dataset.heat = word;
  const words = hit.words.map((each) => each.word);
  let found;
  try {
    found = await patchesOf(hit.id, words.includes(word) ? words : [word]);
  } catch {
    return; // the photo stays as it is
  }
  const map = found?.maps[word];
  if (!map || holder.dataset.heat !== word) return;
  holder.querySelectorAll(".heat").forEach((element) => element.remove());
  holder.append(...drawn(map, found, visible(photo.naturalWidth, photo.naturalHeight, square), word));
}

function drawn(map, found, part, word) {
  const rows = map.length;
  const columns = map[0].length;
  const values = map.flat();
  const most = Math.max(...values);
  const best = values.indexOf(most);
  const row = Math.floor(best / columns);
  const column = best % columns;
  const canvas = make("canvas", { width: columns, height: rows });
  const context = canvas.getContext("2d");
  const pixels = context.createImageData(columns, rows);
  values.forEach((value, place) => {
    pixels.data.set([8, 12, 10, Math.round(255 * DARKEST * (1 - (most > 0 ? value / most : 0)))], 4 * place);
  });
  context.putImageData(pixels, 0, 0);
  const heat = make("div", { className: "heat" }, canvas);
  Object.assign(heat.dataset, { word, row, column, rows, columns });
  if (most > 0) {
    const frame = make("i");
    Object.assign(frame.style, {
      left: percent(column / columns), top: percent(row / rows), width: percent(1 / columns), height: percent(1 / rows),
    });
    heat.append(frame);
  }
  const [width, height] = [part.right - part.left, part.bottom - part.top];
  Object.assign(heat.style, {
    left: percent((found.left - part.left) / width), top: percent((found.top - part.top) / height),
    width: percent((found.right - found.left) / width), height: percent((found.bottom - found.top) / height),
  });
  requestAnimationFrame(() => heat.classList.add("on"));
  return [heat];
}
