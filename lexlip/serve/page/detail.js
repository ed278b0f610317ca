// One photo, large, with all its words.

import { image, thumbnail } from "./api.js";
import { CROSS, find, icon, make, momentOf, shown } from "./dom.js";
import { closeMenu } from "./menu.js";
import { described, photoOf, wordButton } from "./tiles.js";

const dialog = find("detail");
let current = null; // { hits, place, context, similar }

export function openDetail(hits, hit, context, similar) {
  current = { hits, place: hits.indexOf(hit), context, similar };
  draw();
  if (!dialog.open) dialog.showModal();
}

export const closeDetail = () => dialog.close();

// After the search has changed: the same photo, its words marked anew.
export function redrawDetail(context) {
  if (!dialog.open) return;
  current.context = context;
  draw();
}

// The frame has the photo's own shape, so that the patches lie where they belong.
function fit() {
  const frame = dialog.querySelector(".frame");
  const photo = frame?.querySelector("img");
  if (!photo?.naturalWidth) return;
  const stage = frame.parentElement;
  const scale = Math.min(stage.clientWidth / photo.naturalWidth, stage.clientHeight / photo.naturalHeight);
  frame.style.width = `${Math.round(photo.naturalWidth * scale)}px`;
  frame.style.height = `${Math.round(photo.naturalHeight * scale)}px`;
}

function draw() {
  const { hits, place, context, similar } = current;
  const hit = hits[place];
  const frame = make("div", { className: "frame" });
  const photo = photoOf(hit, thumbnail(hit.id, 640), context);
  photo.addEventListener("load", fit);
  frame.append(photo);
  if (photo.tagName === "IMG") {
    const large = make("img", { src: image(hit.id), alt: described(hit) });
    large.addEventListener("load", () => { photo.src = large.src; }, { once: true });
  }
  const words = hit.words; // heaviest first
  const most = Math.max(...words.map((each) => each.weight), 1e-9);
  const rows = words.map(({ word, weight }) => make("li", {}, wordButton("", hit, word, frame, false, context,
    make("span", {}, shown(word)), make("progress", { max: most, value: weight, "aria-hidden": "true" }),
    make("small", {}, weight.toFixed(3)))));
  const turn = (by, label, className, path) => make("button", {
    type: "button", className: `plain turn ${className}`, "aria-label": label, onclick: () => go(by),
  }, icon(path));
  const stage = make("div", { className: "stage" }, frame);
  if (place > 0) stage.append(turn(-1, "Photo before", "back", "M12 4 6 10l6 6"));
  if (place < hits.length - 1) stage.append(turn(1, "Next photo", "on", "m8 4 6 6-6 6"));
  const actions = make("div", { className: "row" },
    make("button", { type: "button", onclick: () => { dialog.close(); similar(hit); } }, "More like this"));
  if (context.photos) actions.append(make("a", { href: image(hit.id), target: "_blank", rel: "noopener" }, "Open"));
  const side = make("div", { className: "side" },
    make("h2", {}, String(hit.id)),
    make("p", { className: "score" }, [momentOf(hit.id), `Score ${hit.score.toFixed(4)}`].filter(Boolean).join(" · ")),
    make("ul", { className: "words" }, ...rows),
    make("p", { className: "hint" }, context.patches ? "Point at a word to see where it is; click to search with or without it." : "Click a word to search with or without it."),
    actions);
  const close = make("button", { type: "button", className: "plain close", "aria-label": "Close", autofocus: true, onclick: closeDetail }, icon(CROSS));
  dialog.replaceChildren(make("div", { className: "view" }, stage, side), close);
  fit();
}

function go(by) {
  const place = current.place + by;
  if (!current.hits[place]) return;
  closeMenu();
  current.place = place;
  draw();
}

dialog.addEventListener("keydown", (event) => {
  if (event.target.closest("#menu")) return;
  if (event.key === "ArrowRight") go(1);
  if (event.key === "ArrowLeft") go(-1);
});
dialog.addEventListener("click", (event) => event.target === dialog && closeDetail());
dialog.addEventListener("close", () => {
  closeMenu();
  document.body.append(find("menu"));
  const tile = [...document.querySelectorAll(".tile")].find((each) => each.dataset.id === String(current.hits[current.place].id));
  tile?.querySelector(".photo").focus();
});
addEventListener("resize", fit);
