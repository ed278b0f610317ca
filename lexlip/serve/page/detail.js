// One photo, large, with all its words; or a video at the moment that was found.

import { image, reachVideo, thumbnail, video } from "./api.js";
import { CROSS, find, icon, make, momentOf, secondOf, shown } from "./dom.js";
import { closeMenu } from "./menu.js";
import { described, photoOf, wordButton } from "./tiles.js";

const dialog = find("detail");
let current = null; // { hits, place, context, similar, playing }

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
  const sizes = [...dialog.querySelectorAll(".frame img, .frame video")]
    .map((each) => [each.naturalWidth ?? each.videoWidth, each.naturalHeight ?? each.videoHeight]);
  const [width, height] = sizes.find(([width]) => width) ?? []; // of a video only where its frame is not there
  if (!width) return;
  const stage = frame.parentElement;
  const scale = Math.min(stage.clientWidth / width, stage.clientHeight / height);
  frame.style.width = `${Math.round(width * scale)}px`;
  frame.style.height = `${Math.round(height * scale)}px`;
}

// Lies over its frame, which words are shown on. A search that changes leaves it playing.
function playing(hit) {
  if (current.playing) return current.playing;
  const note = make("p", { className: "hint", role: "status" });
  const player = make("video", {
    controls: true, preload: "metadata", playsInline: true, poster: thumbnail(hit.id, 640),
    src: `${video(hit.id)}#t=${secondOf(hit.id)}`, "aria-label": String(hit.id),
  });
  player.addEventListener("loadedmetadata", fit);
  let tried = false;
  player.addEventListener("error", async () => {
    player.hidden = true;
    const { currentTime: at, paused } = player;
    const name = String(hit.id).split("/").pop().replace(/#t=[\d.]+$/, "");
    const link = make("a", { href: video(hit.id), download: name }, "download it");
    const again = () => {
      const focused = note.contains(document.activeElement);
      note.replaceChildren();
      player.hidden = false;
      player.load();
      player.addEventListener("loadedmetadata", () => {
        if (at) player.currentTime = at; // else the moment that was found
        if (!paused) player.play();
      }, { once: true });
      if (focused) player.focus();
    };
    try {
      await reachVideo(hit.id);
    } catch (error) {
      note.replaceChildren(error.message, " ", make("button", { type: "button", className: "link", onclick: again }, "Try again"));
      return;
    }
    if (tried) note.replaceChildren("This browser cannot play the video: ", link, ".");
    else again(); // the service may have been busy when the player asked
    tried = true;
  });
  return (current.playing = { player, note });
}

// Else it would be heard and loaded on.
function stop() {
  current.playing?.player.removeAttribute("src");
  current.playing?.player.load();
  current.playing = null;
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
  const { player, note } = context.photos && secondOf(hit.id) !== null ? playing(hit) : {};
  if (player) frame.append(player);
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
    note ?? "",
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
  stop();
  current.place = place;
  draw();
}

dialog.addEventListener("keydown", (event) => {
  if (event.target.closest("#menu, video")) return; // a player has arrows of its own
  if (event.key === "ArrowRight") go(1);
  if (event.key === "ArrowLeft") go(-1);
});
dialog.addEventListener("click", (event) => event.target === dialog && closeDetail());
dialog.addEventListener("close", () => {
  closeMenu();
  stop();
  document.body.append(find("menu"));
  const tile = [...document.querySelectorAll(".tile")].find((each) => each.dataset.id === String(current.hits[current.place].id));
  tile?.querySelector(".photo").focus();
});
addEventListener("resize", fit);
