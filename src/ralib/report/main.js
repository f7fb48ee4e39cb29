// Puts the page together. The gallery comes first, so that it shows while the rest is made.

function buildNavigation() {
  const links = [...document.querySelectorAll("main > section")].map((section) => {
    const link = el("a", { href: `#${section.id}` }, section.querySelector("h2").textContent.replace(" of particles and classes", "").replace("Contrast transfer", "CTF").replace("How it was made", "Run"));
    return [section, link];
  });
  byId("nav").append(...links.map(([, link]) => link));
  const mark = () => {
    const current = links.findLast(([section]) => section.getBoundingClientRect().top < 140) || links[0];
    for (const [section, link] of links) if (section === current[0]) link.setAttribute("aria-current", "true"); else link.removeAttribute("aria-current");
  };
  addEventListener("scroll", mark, { passive: true });
  mark();
}

buildHeader();
buildSelectionBar();
buildPrintSummary();
buildGallery();
buildConvergence();
buildResolution();
buildDistributions();
buildCtf();
buildMap();
buildProvenance();
buildNavigation();
restoreSelection();
followRun();
const asked = location.hash.match(/^#class-(\d+)$/);
if (asked && run.classes[asked[1] - 1]) openDetail(asked[1] - 1);
document.documentElement.dataset.ready = Math.round(performance.now());
document.documentElement.dataset.built = Math.round(performance.now() - started);
