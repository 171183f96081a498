for (const box of document.querySelectorAll(".effect")) {
  const rows = JSON.parse(box.dataset.rows), slider = box.querySelector("input"), out = box.querySelector("output");
  const show = () => {
    const [value, trained, share, rank] = rows[slider.value];
    out.textContent = `= ${value}: ${trained} trained, change ${share}, rank ${rank}`;
  };
  slider.addEventListener("input", show);
  show();
}
