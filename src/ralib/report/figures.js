// The figures of a class and of a particle: one name, one meaning, one way to write each, everywhere in the page.
// better: 1 where more is better, -1 where less is; 0 where neither is.

const share = (value) => percent(value, 1);
const twoDigits = (value) => value.toFixed(2);
const figures = [
  { key: "members", name: "Members", better: 1, text: count, about: "Particles in the class." },
  { key: "resolution", name: "Resolution", unit: resolutionUnit, better: -1, text: (value) => `${short(value)} ${resolutionUnit}`, about: "Where the Fourier ring correlation of its two half averages falls below 0.143." },
  { key: "score", name: "Class score", better: 1, text: twoDigits, about: "0 to 1: how far the class can be trusted, from junk share, agreement and detail." },
  { key: "junk", name: "Junk share", brief: "junk", better: -1, text: share, about: "Mean probability of its members to be junk." },
  { key: "agreement", name: "Agreement", brief: "agree", better: 1, text: share, about: "Share of its members that return to it when compared with averages of the other half of the data." },
  { key: "stable", name: "Stability", brief: "stable", better: 1, text: share, about: "Share of its members that keep their class mates and pose in runs from other starts." },
  { key: "posterior_mean", name: "Mean posterior", better: 1, text: twoDigits, about: "Mean probability of its members to belong to it rather than to another class." },
  { key: "sharpness", name: "Detail", better: 1, text: short, about: "Fine detail its members share with it; 1 is typical of this run." },
  { key: "pose_support", name: "Pose support", brief: "pose", unit: "σ", better: 1, text: (value) => `${short(value)} σ`, about: "By how many standard deviations of the noise in one image parts of it that were not compared support a member's rotation. Noise has about 3; below 3.5 its views were probably not told apart, unless it is round." },
  { key: "round_support", name: "Round support", brief: "round", unit: "σ", better: 0, text: (value) => `${short(value)} σ`, about: "The same of what does not change as the average turns: fine detail of a round particle, from 2.5 on. Noise and blobs have less." },
  { key: "mean_fit", name: "Mean fit", better: 1, text: short, about: "How well its members fit it: the mean of the search's criterion." },
  { key: "shift_spread_px", name: "Shift spread", unit: "px", better: -1, text: (value) => `${short(value)} px`, about: "Spread of its members' origin shifts from one iteration to the next." },
  { key: "inplane_spread_deg", name: "In-plane spread", unit: "°", better: -1, text: (value) => `${short(value)}°`, about: "Spread of its members' in-plane angles from one iteration to the next." },
  { key: "off_centre_px", name: "Off centre", unit: "px", better: -1, text: (value) => `${short(value)} px`, about: "Distance of what the average shows, by its outline, from the centre of the box." },
  { key: "mirror_fraction", name: "Mirrored", better: 0, text: share, about: "Share of its members that are mirrored." },
  { key: "median_defocus_A", name: "Median defocus", unit: "Å", better: 0, text: (value) => `${short(value / 1e4)} µm`, about: "Median defocus of its members." },
].filter(({ key }) => run.classes.some((item) => known(item[key])));
const figureOf = (key) => figures.find((item) => item.key === key);

// What a particle must reach to stay; `option` is what `ralib select` calls it.
const particleLimits = [
  { key: "fit", name: "Fit", sense: "≥", option: "--min-fit", file: "min_fit", about: "How well it fits its average: the search's criterion." },
  { key: "posterior", name: "Posterior", sense: "≥", option: "--min-posterior", file: "min_posterior", about: "Probability to belong to its class rather than to another." },
  { key: "junk", name: "Junk", sense: "≤", option: "--max-junk", file: "max_junk", about: "Probability to be junk." },
].filter(({ key }) => particleFigures[key]);

// Verdict in a word or two; the whole sentence is in the tooltip, the detail view and the table.
// What a card has room for; its title says all of it.
const briefVerdict = (text) => (text || "").split(/[:;]/)[0].replace(/^\d+\s?% of its members are probably junk$/, "partly junk")
  .replace(/^its views were probably not told apart$/, "views unsure").replace(/^less detail than most classes$/, "less detail");
const hasAutomatic = run.classes.some((item) => typeof item.selected === "boolean");
// The run keeps particles, whatever their class, up to this probability of being junk: `ralib select --auto`.
const automaticLimit = () => (particleFigures.junk && known(run.automatic_junk_limit) ? run.automatic_junk_limit : null);
// So a class is ticked where any particle stays; where nothing is known of particles, as the run says of the class.
function automaticClasses() {
  const limit = automaticLimit() === null ? null : Math.fround(automaticLimit());
  return everyClass().filter((k) => members[k] && (limit === null ? run.classes[k].selected === true : particleFigures.junk[k].some((value) => value <= limit)));
}
function keepAutomatic() {
  kept.clear();
  for (const k of automaticClasses()) kept.add(k);
  limits.classes = {};
  limits.particles = automaticLimit() === null ? {} : { junk: automaticLimit() };
}
function automaticText(item) {
  if (typeof item.selected !== "boolean") return "";
  const verb = item.selected ? "kept" : "left out", reason = item.reason || "";
  return reason.startsWith(verb) ? reason : [verb, reason].filter(Boolean).join(": ");
}
