//! The page.

use crate::colour;
use crate::curves::{Curve, Curves, Scale};
use crate::data::{Contender, Section};
use crate::heatmap::{Cell, Heatmap};
use crate::lines::{Header, Record};
use crate::numbers::{grouped, list, percent, small, tokens};
use crate::svg::Drawing;
use crate::tables;
use crate::words::{cannot, rate_tip};
use maud::{DOCTYPE, Markup, PreEscaped, html};

const STYLE: &str = include_str!("style.css");

/// The whole page.
pub(crate) fn page(sections: &[Section]) -> String {
    let title = match sections {
        [one] => format!("Cache policies on {}", model(&one.header())),
        _ => "Cache policies".to_owned(),
    };
    let many = sections.len() > 1;
    let page = html! {
        (DOCTYPE)
        html lang="en" {
            head {
                meta charset="utf-8";
                meta name="viewport" content="width=device-width, initial-scale=1";
                title { (title) }
                style { (PreEscaped(STYLE)) }
            }
            body {
                header {
                    h1 { (title) }
                    p.soft { "Report of " code { "kiv eval" } ". Every policy had the same prompts; "
                        "the context is read once, then every question is read token by token, through retrieval. "
                        "A dash is something that was not measured. In tables full attention comes first, and of "
                        "several policies with the same budget the best is bold." }
                }
                @for section in sections {
                    @if many { h2 { (setup(section)) } }
                    (body(section))
                }
            }
        }
    };
    page.into_string() + "\n"
}

fn body(section: &Section) -> Markup {
    let curves = curves(section);
    let needles = needles(section);
    let heads = heads(section);
    let asked = !section.kinds().is_empty();
    html! {
        section {
            @if asked {
                h2 { "What the model cannot do" }
                p { "Under full attention, with everything resident:" }
                ul { @for sentence in cannot(section) { li { (sentence) } } }
                h2 { "Tasks" }
                (tables::scores(section))
                @if let Some(table) = tables::agreement(section) {
                    h2 { "Against full attention" }
                    (table)
                }
            }
            @if !needles.is_empty() {
                h2 { "Needles by length and depth" }
                (scale("right answers"))
                (figures(&needles))
            }
            h2 { "Quality against budget" }
            @if curves.is_empty() {
                p.missing { "Not measured: that takes several budgets, as "
                    code { "--kv-budget 512,1024,2048" } " gives them." }
            } @else {
                (figures(&curves))
            }
            h2 { "Attention recall" }
            @match tables::recall(section) {
                None => p.missing { "Not measured (" code { "kiv eval recall" } ")." },
                Some(table) => {
                    p { "While questions are read, every key is scored for every query. Mass recall is the share of "
                        "the true softmax that falls on resident rows, top-10 recall the share of a query's ten best "
                        "keys that are resident." }
                    (table)
                    @if !heads.is_empty() {
                        h3 { "Mass recall by layer and head" }
                        (scale("mass on resident rows"))
                        (figures(&heads))
                    }
                }
            }
            h2 { "Divergence from full attention" }
            @match tables::divergence(section) {
                None => p.missing { "Not measured (" code { "kiv eval kld" } ")." },
                Some(table) => (table),
            }
            h2 { "Conditions" }
            (conditions(section))
        }
    }
}

/// Every figure of a section.
pub(crate) fn drawings(section: &Section) -> Vec<Drawing> {
    let mut all = needles(section);
    all.extend(curves(section));
    all.extend(heads(section));
    all
}

fn figures(drawings: &[Drawing]) -> Markup {
    html! { div.figures { @for drawing in drawings { figure { (drawing.inline()) } } } }
}

fn scale(what: &str) -> Markup {
    html! { p.soft { (what) ": 0 %" span.scale {} "100 %" } }
}

/// Needle grids.
fn needles(section: &Section) -> Vec<Drawing> {
    let is_needle = |r: &Record| r.task == "needle" && r.depth.is_some();
    let lengths = section.values(|r| is_needle(r).then_some(r.n_ctx));
    // Depths in parts per million of the context.
    let ppm = |r: &Record| r.depth.map(|d| (d * 1e4).round() as u64);
    let depths = section.values(|r| ppm(r).filter(|_| is_needle(r)));
    let grid = |contender: &Contender| {
        let cell = |depth: u64, n_ctx: u64| {
            let rate = section.rate(contender, |r| {
                is_needle(r) && r.n_ctx == n_ctx && ppm(r) == Some(depth)
            })?;
            let place = format!("{}, {} %", tokens(n_ctx), depth as f64 / 1e4);
            Some(Cell {
                share: rate.share(),
                text: percent(rate.share()),
                tip: rate_tip(&format!("{}, {place}", contender.name()), rate),
            })
        };
        let row = |depth: &u64| lengths.iter().map(|n| cell(*depth, *n)).collect();
        Heatmap {
            title: "needle".to_owned(),
            subtitle: contender.name(),
            x: "tokens of context",
            y: "depth, %",
            columns: lengths.iter().map(|n| tokens(*n)).collect(),
            rows: depths
                .iter()
                .map(|d| (*d as f64 / 1e4).to_string())
                .collect(),
            cells: depths.iter().map(row).collect(),
        }
    };
    let contenders = section.contenders(is_needle);
    contenders.iter().map(|c| grid(c).draw()).collect()
}

/// Attention recall by layer and head.
fn heads(section: &Section) -> Vec<Drawing> {
    let mut drawings = Vec::new();
    for n_ctx in section.values(|r| (r.task == "recall").then_some(r.n_ctx)) {
        for contender in section.contenders(|r| r.task == "recall") {
            let Some(recall) = section.recall(&contender, n_ctx) else {
                continue;
            };
            let n_heads = recall.mass_by_head.iter().map(Vec::len).max().unwrap_or(0);
            if n_heads == 0 {
                continue;
            }
            let cell = |layer: usize, head: usize| {
                let share = *recall.mass_by_head[layer].get(head)?;
                Some(Cell {
                    share,
                    text: percent(share),
                    tip: format!("layer {layer}, head {head}: {:.3} %", share * 100.0),
                })
            };
            let layers = 0..recall.mass_by_head.len();
            let heatmap = Heatmap {
                title: format!("recall at {}", tokens(n_ctx)),
                subtitle: contender.name(),
                x: "head",
                y: "layer",
                columns: (0..n_heads).map(|h| h.to_string()).collect(),
                rows: layers.clone().map(|l| l.to_string()).collect(),
                cells: layers
                    .map(|l| (0..n_heads).map(|h| cell(l, h)).collect())
                    .collect(),
            };
            drawings.push(heatmap.draw());
        }
    }
    drawings
}

/// Quality against budget, by task and length; where there are several budgets.
fn curves(section: &Section) -> Vec<Drawing> {
    let mut drawings = Vec::new();
    let full = Contender::full();
    for kind in section.kinds() {
        let of = |n_ctx: u64| {
            move |r: &Record, kind: &crate::data::Kind| r.kind() == *kind && r.n_ctx == n_ctx
        };
        for n_ctx in section.values(|r| (r.kind() == kind).then_some(r.n_ctx)) {
            let here = |r: &Record| of(n_ctx)(r, &kind);
            let entries = section.values(|r| r.entries.filter(|_| here(r)));
            let subtitle = match entries.as_slice() {
                [one] => format!("{} entries, {} tokens", grouped(*one), tokens(n_ctx)),
                _ => format!("{} tokens", tokens(n_ctx)),
            };
            let value = |c: &Contender| {
                let rate = section.rate(c, here)?;
                Some((rate.share(), rate_tip(&c.name(), rate)))
            };
            drawings.extend(draw(section, here, value, |curves| Curves {
                title: kind.name(),
                subtitle,
                y: "right answers",
                scale: Scale::Share,
                full: section.rate(&full, here).map(|r| r.share()),
                curves,
            }));
        }
    }
    for n_ctx in section.values(|r| (r.task == "recall").then_some(r.n_ctx)) {
        let here = |r: &Record| r.task == "recall" && r.n_ctx == n_ctx;
        let value = |c: &Contender| {
            let share = section.recall(c, n_ctx)?.mass_mean;
            Some((share, format!("{}: {:.3} %", c.name(), share * 100.0)))
        };
        drawings.extend(draw(section, here, value, |curves| Curves {
            title: "attention recall".to_owned(),
            subtitle: format!("{} tokens", tokens(n_ctx)),
            y: "mean mass recall",
            scale: Scale::HighShare,
            full: None,
            curves,
        }));
    }
    for n_ctx in section.values(|r| (r.task == "kld").then_some(r.n_ctx)) {
        let here = |r: &Record| r.task == "kld" && r.n_ctx == n_ctx;
        let value = |c: &Contender| {
            let kl = section.divergence(c, n_ctx)?.kld_mean;
            Some((kl, format!("{}: {} nats", c.name(), small(kl))))
        };
        drawings.extend(draw(section, here, value, |curves| Curves {
            title: "divergence".to_owned(),
            subtitle: format!("{} tokens", tokens(n_ctx)),
            y: "mean KL, nats",
            scale: Scale::Log,
            full: None,
            curves,
        }));
    }
    drawings
}

fn draw(
    section: &Section,
    here: impl Fn(&Record) -> bool,
    value: impl Fn(&Contender) -> Option<(f64, String)>,
    make: impl FnOnce(Vec<Curve>) -> Curves,
) -> Option<Drawing> {
    let contenders = section.contenders(here);
    // One of each policy and reader.
    let mut kinds: Vec<&Contender> = Vec::new();
    for contender in contenders.iter().filter(|c| !c.is_full()) {
        if !kinds.iter().any(|k| k.differs_in_budget(contender)) {
            kinds.push(contender);
        }
    }
    let mut policies = section.policies();
    policies.retain(|p| p != "full");
    let curve = |kind: &&Contender| {
        let points = contenders.iter().filter(|c| c.differs_in_budget(kind));
        let point = |c: &Contender| {
            let (value, tip) = value(c)?;
            Some((c.budget?, value, tip))
        };
        let order = policies.iter().position(|p| *p == kind.policy);
        let same_policy = kinds.iter().filter(|c| c.policy == kind.policy);
        let several = same_policy.count() > 1;
        Curve {
            points: points.filter_map(point).collect(),
            series: colour::series(&kind.policy, order.unwrap_or(0)),
            name: match kind.reader() {
                Some(reader) if several => format!("{}, {reader}", kind.policy),
                _ => kind.policy.clone(),
            },
        }
    };
    let curves: Vec<Curve> = kinds
        .iter()
        .map(curve)
        .filter(|c| !c.points.is_empty())
        .collect();
    let several = curves.iter().any(|c| c.points.len() > 1);
    several.then(|| make(curves).draw())
}

/// The model's name, or its file's.
fn model(header: &Header) -> String {
    let name = header.model_name.as_ref().or(header.model_file.as_ref());
    name.cloned()
        .unwrap_or_else(|| "an unknown model".to_owned())
}

/// What tells sections apart.
fn setup(section: &Section) -> String {
    let h = section.header();
    let mut parts = vec![model(&h)];
    parts.extend(
        h.model_sha256
            .as_ref()
            .map(|s| format!("{}…", &s[..s.len().min(8)])),
    );
    parts.extend(h.kv_window.map(|w| format!("window {}", tokens(w))));
    parts.extend(h.kv_block.map(|b| format!("block {b}")));
    if let (Some(k), Some(v)) = (&h.cache_type_k, &h.cache_type_v) {
        parts.push(format!("cache {k}/{v}"));
    }
    parts.extend(h.store().map(|[k, v]| format!("host rows {k}/{v}")));
    parts.extend(h.is_remapped().then(|| "remapped positions".to_owned()));
    parts.extend((!h.has_rest()).then(|| "no rest".to_owned()));
    parts.join(", ")
}

/// The conditions of a section's runs, as a list.
fn conditions(section: &Section) -> Markup {
    let of = |get: &dyn Fn(&Header) -> Option<String>| {
        let mut all: Vec<String> = Vec::new();
        for value in section.headers.iter().filter_map(get) {
            if !all.contains(&value) {
                all.push(value);
            }
        }
        Some(list(&all)).filter(|text| !text.is_empty())
    };
    let number = |n: Option<u64>| n.map(grouped);
    let budgets = section.contenders(|r| r.budget.is_some());
    let mut budgets: Vec<u64> = budgets.iter().filter_map(|c| c.budget).collect();
    budgets.sort_unstable();
    budgets.dedup();
    let budgets: Vec<String> = budgets.into_iter().map(grouped).collect();
    let rows: Vec<(&str, Option<String>)> = vec![
        (
            "model",
            of(&|h| {
                let arch = h
                    .model_arch
                    .as_ref()
                    .map(|a| format!(" ({a})"))
                    .unwrap_or_default();
                h.model_name.as_ref().map(|name| format!("{name}{arch}"))
            }),
        ),
        ("file", of(&|h| h.model_file.clone())),
        ("type", of(&|h| h.model_type.clone())),
        ("parameters", of(&|h| number(h.model_params))),
        (
            "size",
            of(&|h| Some(format!("{} bytes", grouped(h.model_bytes?)))),
        ),
        ("SHA-256", of(&|h| h.model_sha256.clone())),
        (
            "machine",
            of(&|h| {
                let os =
                    h.os.as_ref()
                        .map(|os| format!(" ({os})"))
                        .unwrap_or_default();
                Some(format!("{}{os}", h.cpu.as_ref()?))
            }),
        ),
        (
            "threads",
            of(&|h| {
                let (one, batch) = (h.threads?, h.threads_batch);
                Some(match batch {
                    Some(batch) if batch != one => format!("{one} ({batch} while reading)"),
                    _ => one.to_string(),
                })
            }),
        ),
        ("layers on a GPU", of(&|h| number(h.gpu_layers))),
        (
            "micro-batch",
            of(&|h| Some(format!("{} tokens", number(h.ubatch)?))),
        ),
        (
            "cache types",
            of(&|h| {
                Some(format!(
                    "K {}, V {}",
                    h.cache_type_k.as_ref()?,
                    h.cache_type_v.as_ref()?
                ))
            }),
        ),
        (
            "RoPE scaling",
            of(&|h| {
                let base = h
                    .rope_freq_base
                    .filter(|x| *x != 0.0)
                    .map(|x| format!("base {x}"));
                let scale = h
                    .rope_freq_scale
                    .filter(|x| *x != 0.0)
                    .map(|x| format!("factor {x}"));
                let parts: Vec<String> = h
                    .rope_scaling
                    .iter()
                    .cloned()
                    .chain(base)
                    .chain(scale)
                    .collect();
                Some(parts.join(", ")).filter(|text| !text.is_empty())
            }),
        ),
        (
            "budget",
            Some(list(&budgets))
                .filter(|b| !b.is_empty())
                .map(|b| format!("{b} tokens")),
        ),
        (
            "window",
            of(&|h| Some(format!("{} tokens", number(h.kv_window)?))),
        ),
        (
            "block",
            of(&|h| {
                Some(format!(
                    "{} tokens, unless the policy has its own",
                    number(h.kv_block)?
                ))
            }),
        ),
        (
            "sinks",
            of(&|h| Some(format!("{} tokens", number(h.kv_sinks)?))),
        ),
        (
            "rows outside the device",
            of(&|h| Some(format!("K in {}, V in {}", h.store()?[0], h.store()?[1]))),
        ),
        (
            "positions",
            of(&|h| h.is_remapped().then(|| "remapped".to_owned())),
        ),
        (
            "what is not in slots",
            of(&|h| (!h.has_rest()).then(|| "left out (--kv-rest off)".to_owned())),
        ),
        (
            "contexts read by",
            of(&|h| {
                let by = h.kv_read_policy.as_ref()?;
                Some(format!("{by}, for all policies that keep every row"))
            }),
        ),
        ("seed", of(&|h| h.seed.map(|s| s.to_string()))),
        ("samples", of(&|h| h.samples.map(|s| s.to_string()))),
        ("kiv", of(&|h| h.kiv_version.clone())),
    ];
    // What is only sometimes set is left out where it is not.
    let optional = [
        "layers on a GPU",
        "RoPE scaling",
        "rows outside the device",
        "positions",
        "what is not in slots",
        "contexts read by",
    ];
    html! {
        div.scroll { table.facts { tbody {
            @for (name, value) in rows {
                @if value.is_some() || !optional.contains(&name) {
                    tr {
                        th scope="row" { (name) }
                        @match value {
                            Some(value) => td { (value) },
                            None => td.missing { "not recorded" },
                        }
                    }
                }
            }
        } } }
    }
}
