"use strict";
const map = document.getElementById("map");
const points = [...map.querySelectorAll(".p")];
const places = points.map((point) => [Number(point.dataset.x), Number(point.dataset.y)]);
const whole = { x: 0, y: 0, width: Number(map.dataset.width), height: Number(map.dataset.height) };
const CLOSEST = 0.04;
let view = { ...whole };
let chosen = -1;

const picture = (number) => points[number].querySelector("image").getAttribute("href");
const hidden = (number) => points[number].classList.contains("out");

function show(next) {
  const width = Math.min(whole.width, Math.max(whole.width * CLOSEST, next.width));
  const height = (width * whole.height) / whole.width;
  view = {
    x: Math.min(whole.width - width, Math.max(0, next.x)),
    y: Math.min(whole.height - height, Math.max(0, next.y)),
    width,
    height,
  };
  map.setAttribute("viewBox", `${view.x} ${view.y} ${view.width} ${view.height}`);
  // On a phone the map is small, so thumbnails are drawn larger.
  const shownWidth = map.getBoundingClientRect().width || whole.width;
  const scale = Math.min(2.2, Math.max(1, 760 / shownWidth));
  map.style.setProperty("--k", (scale * view.width) / whole.width);
  map.classList.toggle("near", view.width < whole.width);
}

function zoom(factor, x, y) {
  const width = Math.min(whole.width, Math.max(whole.width * CLOSEST, view.width * factor));
  const share = width / view.width;
  show({ x: x - (x - view.x) * share, y: y - (y - view.y) * share, width });
}

function zoomHere(factor) {
  const inside = chosen >= 0 && places[chosen][0] >= view.x && places[chosen][0] <= view.x + view.width
    && places[chosen][1] >= view.y && places[chosen][1] <= view.y + view.height;
  const [x, y] = inside ? places[chosen] : [view.x + view.width / 2, view.y + view.height / 2];
  zoom(factor, x, y);
}

function select(number) {
  if (number === chosen) return;
  if (chosen >= 0) points[chosen].classList.remove("on");
  chosen = number;
  const point = points[number];
  point.classList.add("on");
  point.parentNode.append(point);
  const details = point.dataset;
  const image = document.querySelector("#details img");
  image.src = picture(number);
  image.alt = details.name;
  document.getElementById("name").textContent = details.name;
  document.getElementById("cluster").textContent = Number(details.cluster) + 1;
  for (const key of ["size", "psnr", "bits", "similarity"]) document.getElementById(key).textContent = details[key] || "–";
  const neighbours = document.getElementById("neighbours");
  neighbours.replaceChildren(...details.neighbours.split(" ").filter(Boolean).map((near) => button(Number(near))));
}

function button(number) {
  const element = document.createElement("button");
  const image = document.createElement("img");
  image.src = picture(number);
  image.alt = points[number].dataset.name;
  element.title = points[number].dataset.name;
  element.append(image);
  element.addEventListener("click", () => goTo(number));
  return element;
}

function goTo(number) {
  if (hidden(number)) toggle(points[number].dataset.cluster, true);
  select(number);
  const [x, y] = places[number];
  show({ x: x - view.width / 2, y: y - view.height / 2, width: view.width });
}

function toggle(cluster, shown) {
  document.querySelector(`.chip[data-cluster="${cluster}"]`).setAttribute("aria-pressed", shown);
  for (const point of points) if (point.dataset.cluster === cluster) point.classList.toggle("out", !shown);
}

function moveBy(dx, dy) {
  let best = -1;
  let least = Infinity;
  const [x, y] = places[Math.max(0, chosen)];
  places.forEach(([px, py], number) => {
    const along = (px - x) * dx + (py - y) * dy;
    const across = Math.abs((px - x) * dy - (py - y) * dx);
    const far = along + 2 * across;
    if (number !== chosen && !hidden(number) && along > 0 && across <= 2 * along && far < least) [best, least] = [number, far];
  });
  if (best < 0) return;
  select(best);
  const [px, py] = places[best];
  if (px < view.x || px > view.x + view.width || py < view.y || py > view.y + view.height) goTo(best);
}

function position(event) {
  const box = map.getBoundingClientRect();
  return [view.x + ((event.clientX - box.left) / box.width) * view.width, view.y + ((event.clientY - box.top) / box.height) * view.height];
}

function pointUnder(event) {
  const point = event.target.closest(".p");
  return point ? points.indexOf(point) : -1;
}

let drag = null;
map.addEventListener("pointerdown", (event) => {
  drag = { position: position(event), moved: false };
  const number = pointUnder(event);
  if (number >= 0) select(number);
});
map.addEventListener("pointermove", (event) => {
  if (!drag || !event.buttons) {
    const number = pointUnder(event);
    if (number >= 0 && event.pointerType === "mouse") select(number);
    return;
  }
  const [x, y] = position(event);
  show({ x: view.x + drag.position[0] - x, y: view.y + drag.position[1] - y, width: view.width });
});
window.addEventListener("pointerup", () => { drag = null; });
map.addEventListener("wheel", (event) => {
  // When the whole map is visible, the wheel scrolls the page.
  if (event.deltaY > 0 && view.width >= whole.width) return;
  event.preventDefault();
  zoom(event.deltaY > 0 ? 1.2 : 1 / 1.2, ...position(event));
}, { passive: false });
map.addEventListener("keydown", (event) => {
  const arrows = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };
  if (arrows[event.key]) moveBy(...arrows[event.key]);
  else if (event.key === "+" || event.key === "=") zoomHere(1 / 1.5);
  else if (event.key === "-") zoomHere(1.5);
  else if (event.key === "0") show(whole);
  else return;
  event.preventDefault();
});
document.getElementById("zoom-in").addEventListener("click", () => zoomHere(1 / 1.5));
document.getElementById("zoom-out").addEventListener("click", () => zoomHere(1.5));
document.getElementById("reset").addEventListener("click", () => show(whole));
document.getElementById("pictures").addEventListener("click", (event) => {
  event.currentTarget.setAttribute("aria-pressed", map.classList.toggle("pictures"));
});
for (const chip of document.querySelectorAll(".chip")) {
  chip.addEventListener("click", () => toggle(chip.dataset.cluster, chip.getAttribute("aria-pressed") !== "true"));
}
document.getElementById("all").addEventListener("click", () => {
  for (const chip of document.querySelectorAll(".chip")) toggle(chip.dataset.cluster, true);
});
for (const card of document.querySelectorAll(".go")) {
  card.addEventListener("click", () => {
    goTo(Number(card.dataset.p));
    map.scrollIntoView({ block: "center" });
    map.focus({ preventScroll: true });
  });
}
window.addEventListener("resize", () => show(view));
show(whole);
if (points.length) select(0);
map.dataset.ready = points.length;
