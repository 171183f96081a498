// Sliders of a method's page: each value's picture, singular values and numbers are in the page; a slider chooses.
const coloured = (x) => (x < 0 ? [40, 120, 230, -2 * x] : [225, 60, 60, 2 * x]); // the sign by the colour, the size by how opaque

function painted(canvas, { change, wide }) {
  const values = Int8Array.from(atob(change), (c) => c.charCodeAt(0)), pen = canvas.getContext("2d");
  [canvas.width, canvas.height] = [wide, values.length / wide];
  const picture = pen.createImageData(canvas.width, canvas.height);
  values.forEach((x, i) => picture.data.set(coloured(x), 4 * i));
  pen.putImageData(picture, 0, 0);
}

function barred(svg, values, most) {
  const wide = 100 / most;
  svg.innerHTML = values.map((v, i) => `<rect x="${i * wide}" y="${60 - 58 * v}" width="${wide * 0.8}" height="${58 * v}"/>`).join("");
}

for (const box of document.querySelectorAll(".effect")) {
  const rows = JSON.parse(box.dataset.rows), slider = box.querySelector("input");
  const most = Math.max(8, ...rows.map((row) => row.values.length));
  const show = () => {
    const row = rows[slider.value];
    box.querySelector("code").textContent = row.said;
    box.querySelector("output").textContent = row.facts.join(" · ");
    painted(box.querySelector("canvas"), row);
    barred(box.querySelector("svg"), row.values, most);
  };
  slider.addEventListener("input", show);
  show();
}
