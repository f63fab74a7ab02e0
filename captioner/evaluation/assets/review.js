// A word that is pointed at, focused or touched lights the large picture where the model looked for it.
"use strict";
for (const exhibit of document.querySelectorAll(".exhibit")) {
  const look = exhibit.querySelector(".look"), tiles = [...exhibit.querySelectorAll(".tile")];
  let kept = null;
  const show = tile => {
    look.classList.toggle("lit", Boolean(tile));
    if (tile) look.style.setProperty("--m", tile.style.getPropertyValue("--m"));
    else look.style.removeProperty("--m");
    for (const each of tiles) each.classList.toggle("lit", each === tile);
  };
  for (const tile of tiles) {
    tile.addEventListener("pointerenter", event => { if (event.pointerType === "mouse") show(tile); });
    tile.addEventListener("pointerleave", event => { if (event.pointerType === "mouse") show(kept); });
    tile.addEventListener("click", () => show(kept = kept === tile ? null : tile));
    tile.addEventListener("focus", () => { if (tile.matches(":focus-visible")) show(tile); });
    tile.addEventListener("blur", () => show(kept));
  }
}
