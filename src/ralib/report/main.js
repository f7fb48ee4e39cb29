// Puts the page together. The gallery comes first, so that it shows while the rest is made.

function buildNavigation() {
  const links = [...document.querySelectorAll("main > section")].map((section) => {
    const link = el("a", { href: `#${section.id}` }, section.querySelector("h2").textContent.replace(" of particles and classes", "").replace("Contrast transfer", "CTF").replace("How it was made", "Run").replace(" within the particles", ""));
    return [section, link];
  });
  byId("nav").append(...links.map(([, link]) => link));
  const mark = () => {
    const current = links.findLast(([section]) => section.getBoundingClientRect().top < 140) || links[0];
    for (const [section, link] of links) if (section === current[0]) link.setAttribute("aria-current", "true"); else link.removeAttribute("aria-current");
  };
  addEventListener("scroll", mark, { passive: true });
  links[0][1].setAttribute("aria-current", "true"); // no layout is asked for while the page is being built
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
buildComponents();
buildProvenance();
buildNavigation();
restoreSelection();
followRun();
const asked = location.hash.match(/^#class-(\d+)$/);
if (asked && run.classes[asked[1] - 1]) openDetail(asked[1] - 1);
document.documentElement.dataset.built = Math.round(performance.now() - started);
// Ready: laid out and drawn once; figures are drawn when their width is known.
const tellReady = () => { document.documentElement.dataset.ready = Math.round(performance.now()); };
if (document.hidden) tellReady(); else requestAnimationFrame(() => setTimeout(tellReady));
