// The grid of photos: a tile has the photo's middle square, and the photo's words as chips.

import { thumbnail } from "./api.js";
import { after, find, isWhole, make, momentOf, shown } from "./dom.js";
import { clearHeat, showHeat } from "./heat.js";
import { openMenu } from "./menu.js";
import { heaviest } from "./state.js";

const ON_TILE = 6; // chips; those that the line has no room for are cut off
const AGAIN = 1500; // milliseconds until a photo that did not come is asked for once more
const PATIENCE = 60; // milliseconds over a chip before its patches are asked for

// The words that matter first: heavy ones, and more so if they weigh much in the search.
export function ordered(words, state) {
  const most = heaviest(state);
  const matters = ({ word, weight }) => weight * (1 + (3 * (state.words?.[word] ?? 0)) / most);
  return [...words].sort((one, other) => matters(other) - matters(one));
}

export function described(hit) {
  const words = hit.words.filter((each) => isWhole(each.word)).slice(0, 5).map((each) => each.word);
  return words.length ? `Photo: ${words.join(", ")}` : `Photo ${hit.id}`;
}

// A word that shows where it is while it is pointed at or has the focus, and opens its menu.
export function wordButton(className, hit, word, holder, square, context, ...children) {
  const button = make("button", { type: "button", className, "aria-haspopup": "menu", "aria-expanded": "false" }, ...children);
  button.dataset.word = word;
  if (word in (context.state.words ?? {})) button.classList.add("asked");
  if (holder && context.patches) {
    const show = after(PATIENCE, () => showHeat(holder, hit, word, square));
    const hide = () => {
      if (button.getAttribute("aria-expanded") === "true") return; // its menu is open: what was tapped stays to be seen
      show.cancel();
      clearHeat(holder);
    };
    button.addEventListener("pointerenter", show);
    button.addEventListener("focus", show);
    button.addEventListener("pointerleave", hide);
    button.addEventListener("blur", hide);
    button.addEventListener("menuclosed", () => button.matches(":hover, :focus") || hide());
  }
  button.addEventListener("click", () => openMenu(button, word, context.state, context.change));
  return button;
}

export function photoOf(hit, url, context) {
  if (!context.photos) return make("span", { className: "name" }, String(hit.id));
  const photo = make("img", { src: url, alt: described(hit), decoding: "async", draggable: false });
  photo.addEventListener("load", () => photo.classList.add("there"));
  photo.addEventListener("error", () => {
    if (!photo.dataset.again) { // the service may have been busy
      photo.dataset.again = "yes";
      setTimeout(() => { photo.src = url; }, AGAIN);
    } else photo.replaceWith(make("span", { className: "name" }, `${hit.id} cannot be shown`));
  });
  return photo;
}

function tile(hit, context, open) {
  const photo = make("button", { type: "button", className: "photo", title: String(hit.id), onclick: () => open(hit) });
  const shownPhoto = photoOf(hit, thumbnail(hit.id, 320), context);
  if (shownPhoto.tagName === "IMG") shownPhoto.loading = "lazy";
  photo.append(shownPhoto);
  const moment = momentOf(hit.id);
  if (moment) photo.append(make("span", { className: "moment" }, moment));
  const chips = make("div", { className: "chips" });
  for (const { word, weight } of ordered(hit.words.filter((each) => isWhole(each.word)), context.state).slice(0, ON_TILE)) {
    const chip = wordButton("chip", hit, word, photo, true, context, shown(word), make("small", {}, weight.toFixed(2).replace(/^0/, "")));
    chip.tabIndex = -1; // reached with the arrows: a page of photos is no row of 300 stops
    chips.append(chip);
  }
  const element = make("article", { className: "tile" }, photo, chips);
  element.dataset.id = hit.id;
  return element;
}

const grid = find("results");

export function showTiles(hits, context, open) {
  grid.replaceChildren(...hits.map((hit) => tile(hit, context, open)));
}

// Arrows: between photos, and down from a photo into its words.
grid.addEventListener("keydown", (event) => {
  const inTile = event.target.closest(".tile");
  if (!inTile) return;
  const photos = [...grid.querySelectorAll(".photo")];
  const chips = [...inTile.querySelectorAll(".chip")];
  const place = photos.indexOf(inTile.querySelector(".photo"));
  const onChip = chips.indexOf(event.target);
  const columns = getComputedStyle(grid).gridTemplateColumns.split(" ").length;
  const move = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
  let next;
  if (move && onChip >= 0) next = chips[onChip + move];
  else if (move) next = photos[place + move];
  else if (event.key === "ArrowDown") next = onChip < 0 && chips.length ? chips[0] : photos[place + columns];
  else if (event.key === "ArrowUp") next = onChip >= 0 ? photos[place] : photos[place - columns];
  else return;
  event.preventDefault();
  next?.focus();
});

