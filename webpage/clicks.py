"""The picture to click: what it shows at a place, in words.

All that a click needs is in the visitor's page, and nowhere else: a click asks the server for nothing, which keeps
nothing for it. A thing is a path over the picture. Where there is none, two maps of the depth chart's size say the
class and the metres.
"""

from __future__ import annotations

import base64
import html
import json
from collections.abc import Mapping, Sequence

import cv2
import numpy as np

from tasks import Task, task_giving
from webpage.charts import chart_step

JPEG_QUALITY = 85
LINE_PX = 1.0  # half pixels: how far an outline may be from that of the mask
CENTIMETRES = 100  # of a metre: the unit of the distances, which have 16 bits

CLICK_CSS = """
.beside { display: flex; flex-wrap: wrap; gap: 1.5em; }
.said { flex: 1 1 8em; font-size: 1.1em; }
.picture { position: relative; display: inline-block; max-width: 100%; line-height: 0; cursor: pointer; }
.picture img { max-height: 480px; max-width: 100%; }
.picture svg { position: absolute; inset: 0; width: 100%; height: 100%; }
.picture path { fill: transparent; fill-rule: evenodd; stroke: none; vector-effect: non-scaling-stroke; }
.picture path:hover { fill: rgb(255 255 255 / 15%); }
.picture path.chosen { fill: rgb(255 255 255 / 30%); stroke: white; stroke-width: 3px; }
.picture circle { fill: none; stroke: white; stroke-width: 3px; vector-effect: non-scaling-stroke; display: none; }
"""
# `element` is the part of the page, as gradio gives it; its content changes with each picture.
CLICK_JS = """
const bytes = text => Uint8Array.from(atob(text), letter => letter.charCodeAt(0));
element.addEventListener('click', event => {
  const picture = event.target.closest('.picture');
  if (!picture) return;
  const box = picture.getBoundingClientRect(), known = JSON.parse(picture.dataset.known);
  const x = (event.clientX - box.left) / box.width, y = (event.clientY - box.top) / box.height;
  picture.querySelectorAll('.chosen').forEach(path => path.classList.remove('chosen'));
  const thing = event.target.dataset.thing, dot = picture.querySelector('circle'), said = [];
  dot.style.display = thing === undefined ? 'inline' : 'none';
  if (thing !== undefined) {
    event.target.classList.add('chosen');
    said.push(known.things[thing]);
  } else {
    dot.setAttribute('cx', x * known.width);
    dot.setAttribute('cy', y * known.height);
    const place = Math.min(known.rows - 1, Math.floor(y * known.height / known.step)) * known.columns
      + Math.min(known.columns - 1, Math.floor(x * known.width / known.step));
    if (known.classes) said.push(known.names[bytes(known.classes)[place]] ?? 'no class');
    if (known.metres) {
      const values = bytes(known.metres), far = values[2 * place] + 256 * values[2 * place + 1];
      said.push(far ? (far / 100).toFixed(2) + ' m' : 'distance not known');
    }
  }
  element.querySelector('.said').textContent = said.join(', ') || 'nothing is known here';
});
"""


def picture_to_click(
    picture: np.ndarray, tasks: Mapping[str, Task], found: Mapping[str, np.ndarray], size: tuple[int, int], name: str
) -> str | None:
    """HTML of a shown picture (h, w, 3) uint8 of a frame of this size: with CLICK_JS, clicks say what was found there.

    None where no task says what is where. name: of the task whose things can be clicked, '' = none.
    """
    by_class, by_metres = task_giving("classes", tasks), task_giving("metres", tasks)
    if not (name or by_class or by_metres):
        return None
    step = chart_step(size)
    columns, rows = -(-size[1] // step), -(-size[0] // step)
    known = {"width": size[1], "height": size[0], "step": step, "columns": columns, "rows": rows, "things": []}
    if by_class:
        known["classes"] = _text(found[by_class][::step, ::step])
        known["names"] = [_plain(item) for item in tasks[by_class].classes]
    if by_metres:
        far = np.nan_to_num(found[by_metres][::step, ::step] * CENTIMETRES).round()
        known["metres"] = _text(far.clip(0, 2**16 - 1).astype("<u2"))
    paths: list[str] = []
    if name:
        numbers, items = tasks[name].thing_map(found[name], size)
        outlined = tasks[name].gives == "things"
        pixels = np.bincount(numbers.ravel(), minlength=len(items) + 1)[1:] if outlined else _areas(items)
        known["things"] = [
            thing_text(tasks[name].classes, item, count / numbers.size)
            for item, count in zip(items, pixels, strict=True)
        ]
        paths = _paths(outlined, numbers, items, -(-max(size) // max(picture.shape[:2])))
    bgr = np.ascontiguousarray(picture[..., ::-1])
    jpeg = cv2.imencode(".jpg", bgr, [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY])[1]
    return (
        f'<div class="beside"><div class="picture" data-known="{html.escape(json.dumps(known))}">'
        f'<img alt="prediction" src="data:image/jpeg;base64,{base64.b64encode(jpeg).decode()}">'
        f'<svg viewBox="0 0 {size[1]} {size[0]}" preserveAspectRatio="none">{"".join(paths)}'
        f'<circle r="{max(size) / 100:.1f}"/></svg></div>'
        f'<p class="said">Click {"a thing" if name else "a place"} to see what it is.</p></div>'
    )


def thing_text(classes: Sequence[str], item: np.void, share: float) -> str:
    """`chair, 87 %, 2.31 m away, 4.2 % of the picture, at x 0.40, y -0.20, z 2.30 m`; what is not known is left out.
    share: of the frame's pixels."""
    words = [_plain(classes[item["class"]])]
    if np.isfinite(item["score"]):
        words.append(f"{item['score']:.0%}")
    if np.isfinite(item["distance_m"]):
        words.append(f"{item['distance_m']:.2f} m away")
    words.append(f"{share:.1%} of the picture")
    if np.isfinite(item["xyz_m"]).all():
        words.append("at x {:.2f}, y {:.2f}, z {:.2f} m".format(*item["xyz_m"]))
    return ", ".join(words)


def _paths(outlined: bool, numbers: np.ndarray, items: np.ndarray, step: int) -> list[str]:
    """SVG paths of the things in pixels of the frame, the largest first: the last one lies on top. outlined: those of
    their pixels in each `step`-th row and column of `numbers`, else of their boxes."""
    few, paths = numbers[::step, ::step], []
    for k in np.argsort(-_areas(items), kind="stable"):
        left, top, right, bottom = items["box"][k]
        lines = [np.array([(left, top), (right, top), (right, bottom), (left, bottom)])]
        if outlined:
            x, y = int(left) // step, int(top) // step
            own = few[y : int(bottom) // step + 1, x : int(right) // step + 1] == k + 1
            lines = [step * (line + np.array([x, y])) for line in outline(own)]
        drawn = "".join("M" + "L".join(f"{x:.1f} {y:.1f}" for x, y in line) + "Z" for line in lines)
        paths.append(f'<path data-thing="{k}" d="{drawn}"/>')
    return paths


def outline(mask: np.ndarray) -> list[np.ndarray]:
    """mask (H, W) bool -> the borders of its parts and holes, (n, 2) x, y each; the first pixel is 0..1."""
    fine = np.repeat(np.repeat(mask.astype(np.uint8), 2, axis=0), 2, axis=1)  # so that one pixel has an area
    lines = cv2.findContours(fine, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_SIMPLE)[0]
    return [cv2.approxPolyDP(line, LINE_PX, True)[:, 0] / 2 + 0.25 for line in lines]


def _areas(items: np.ndarray) -> np.ndarray:
    return np.prod(items["box"][:, 2:] - items["box"][:, :2], axis=1)


def _plain(name: str) -> str:
    return name.replace("_", " ")


def _text(values: np.ndarray) -> str:
    return base64.b64encode(np.ascontiguousarray(values).tobytes()).decode()
