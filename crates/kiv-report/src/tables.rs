//! Tables: full attention first, then by budget, the best of each budget bold.

use crate::agreement::agreements;
use crate::data::{Contender, Rate, Section};
use crate::lines::Record;
use crate::numbers::{grouped, percent, small, tokens};
use crate::words::rate_tip;
use maud::{Markup, html};

/// Which records a column or a group of rows is about.
type Keep<'a> = Box<dyn Fn(&Record) -> bool + 'a>;

struct Column<'a> {
    name: String,
    note: Option<String>,
    keep: Keep<'a>,
}

/// Pass rates: tasks by length, phone books by size, prompts from outside.
pub(crate) fn scores(section: &Section) -> Markup {
    let by_length =
        |r: &Record| !matches!(r.task.as_str(), "phonebook" | "prompts" | "recall" | "kld");
    let lengths = section.values(|r| by_length(r).then_some(r.n_ctx));
    let kinds = section.kinds();
    let tasks: Vec<Column<'_>> = kinds
        .iter()
        .filter(|kind| !matches!(kind.task.as_str(), "phonebook" | "prompts"))
        .map(|kind| Column {
            name: kind.task.clone(),
            note: kind.size_name(),
            keep: Box::new(move |r| r.kind() == *kind),
        })
        .collect();
    let length = |n: u64| -> (String, Keep<'_>) {
        let name = format!("{} tokens", tokens(n));
        (name, Box::new(move |r| by_length(r) && r.n_ctx == n))
    };
    let lengths: Vec<(String, Keep<'_>)> = lengths.into_iter().map(length).collect();
    let sizes = section.values(|r| r.entries.filter(|_| r.task == "phonebook"));
    let books: Vec<Column<'_>> = sizes.into_iter().map(|n| book(section, n)).collect();
    let given = |r: &Record| r.task == "prompts";
    let prompts = Column {
        name: "right".to_owned(),
        note: None,
        keep: Box::new(given),
    };
    let all = |name: &str| -> (String, Keep<'_>) { (name.to_owned(), Box::new(|_| true)) };
    html! {
        @if !tasks.is_empty() { (score_table(section, &tasks, &lengths)) }
        @if !books.is_empty() {
            (score_table(section, &books, &[all("phonebook, by entries")]))
        }
        @if section.records.iter().any(given) {
            (score_table(section, &[prompts], &[all("prompts from outside")]))
        }
    }
}

/// Phone books of a size.
fn book<'a>(section: &Section, entries: u64) -> Column<'a> {
    let keep = move |r: &Record| r.task == "phonebook" && r.entries == Some(entries);
    let note = match section.values(|r| keep(r).then_some(r.n_ctx)).as_slice() {
        [one] => format!("{} tokens", tokens(*one)),
        many => format!("{} lengths", many.len()),
    };
    Column {
        name: grouped(entries),
        note: Some(note),
        keep: Box::new(keep),
    }
}

fn score_table(section: &Section, columns: &[Column<'_>], groups: &[(String, Keep<'_>)]) -> Markup {
    html! {
        div.scroll { table.scores {
            caption { "Right answers, % " small { "(right of asked)" } }
            (head(columns))
            @for (name, in_group) in groups {
                @let in_table = |r: &Record| in_group(r) && columns.iter().any(|c| (c.keep)(r));
                @let contenders = rows(with_full(section.contenders(in_table)));
                @let rates = |column: &Column<'_>| -> Vec<Option<Rate>> {
                    let here = |r: &Record| in_group(r) && (column.keep)(r);
                    contenders.iter().map(|c| section.rate(c, here)).collect()
                };
                @let columns: Vec<Vec<Option<Rate>>> = columns.iter().map(rates).collect();
                @let best: Vec<Vec<bool>> = columns.iter().map(|rates| {
                    let shares: Vec<_> = rates.iter().map(|r| r.map(Rate::share)).collect();
                    let best = best(&contenders, &shares, f64::max).into_iter();
                    // Nothing right is nobody's best.
                    best.zip(&shares).map(|(best, share)| best && *share > Some(0.0)).collect()
                }).collect();
                tbody {
                    (group(name, columns.len()))
                    @for (row, contender) in contenders.iter().enumerate() {
                        tr class=[class(&contenders, row)] {
                            (who(contender))
                            @for (rates, best) in columns.iter().zip(&best) {
                                @match rates[row] {
                                    None => (missing()),
                                    Some(rate) => td.num title=(rate_tip(&contender.name(), rate)) {
                                        (bold(best[row], &percent(rate.share())))
                                        " " small { (rate.passed) "/" (rate.total) }
                                    },
                                }
                            }
                        }
                    }
                }
            }
        } }
    }
}

fn group(name: &str, columns: usize) -> Markup {
    html! { tr { th.group colspan=(columns + 2) scope="colgroup" { (name) } } }
}

/// How a row looks: full attention's, and the first of a budget.
fn class(contenders: &[Contender], row: usize) -> Option<&'static str> {
    let budget = |row: usize| contenders[row].budget;
    if contenders[row].is_full() {
        Some("full")
    } else {
        (row > 0 && budget(row) != budget(row - 1)).then_some("next")
    }
}

fn bold(is_bold: bool, text: &str) -> Markup {
    html! { @if is_bold { b { (text) } } @else { (text) } }
}

fn head(columns: &[Column<'_>]) -> Markup {
    html! {
        thead { tr {
            th scope="col" { "policy" }
            th.num scope="col" { "budget" }
            @for column in columns {
                th.num scope="col" {
                    (column.name)
                    @if let Some(note) = &column.note { br; small { (note) } }
                }
            }
        } }
    }
}

fn who(contender: &Contender) -> Markup {
    html! {
        th scope="row" {
            (contender.policy)
            @if let Some(reader) = contender.reader() { " " small { (reader) } }
        }
        td.num { (contender.budget.map_or_else(|| "all".to_owned(), grouped)) }
    }
}

fn missing() -> Markup {
    html! { td.num.missing title="not measured" { "–" } }
}

/// Full attention has its row even if it was not measured.
fn with_full(mut contenders: Vec<Contender>) -> Vec<Contender> {
    if !contenders.iter().any(Contender::is_full) {
        contenders.push(Contender::full());
    }
    contenders
}

/// In the order of a table: `full`, then by budget, so that equals are
/// neighbours.
fn rows(mut contenders: Vec<Contender>) -> Vec<Contender> {
    contenders.sort_by_key(|c| (!c.is_full(), c.budget));
    contenders
}

/// Which of a column's values are the best of several with the same budget.
fn best(
    contenders: &[Contender],
    values: &[Option<f64>],
    better: fn(f64, f64) -> f64,
) -> Vec<bool> {
    let is_best = |(contender, value): (&Contender, &Option<f64>)| {
        let rivals = contenders.iter().zip(values);
        let equals: Vec<f64> = rivals
            .filter(|(c, _)| !c.is_full() && c.budget == contender.budget)
            .filter_map(|(_, v)| *v)
            .collect();
        let best = equals.iter().copied().reduce(better);
        !contender.is_full() && equals.len() > 1 && value.is_some() && *value == best
    };
    contenders.iter().zip(values).map(is_best).collect()
}

/// Answers against full attention's; `None` if no question has been asked of both.
pub(crate) fn agreement(section: &Section) -> Option<Markup> {
    let mut all = agreements(section);
    all.sort_by_key(|(contender, _)| contender.budget);
    all.first()?;
    let column = |name: &str, note: &str| Column {
        name: name.to_owned(),
        note: Some(note.to_owned()),
        keep: Box::new(|_| true),
    };
    let columns = [
        column("asked", "of both"),
        column("both", "right"),
        column("lost", "only full is right"),
        column("gained", "only full is wrong"),
        column("wrong alike", "in the same words"),
        column("wrong otherwise", ""),
    ];
    let contenders: Vec<Contender> = all.iter().map(|(c, _)| c.clone()).collect();
    Some(html! {
        div.scroll { table.scores {
            caption { "The same question to a policy and to full attention" }
            (head(&columns))
            tbody {
                @for (row, (contender, a)) in all.iter().enumerate() {
                    tr class=[class(&contenders, row)] {
                        (who(contender))
                        @for n in [a.asked(), a.both_right, a.lost, a.gained, a.wrong_alike, a.wrong_otherwise] {
                            td.num { (grouped(n)) }
                        }
                    }
                }
            }
        } }
    })
}

/// A figure of a table by length: its name, how it is written, and which of two
/// is better.
struct Measure<T> {
    name: &'static str,
    get: fn(&T) -> f64,
    write: fn(f64) -> String,
    better: fn(f64, f64) -> f64,
}

/// Attention recall by length; empty if it was not measured.
pub(crate) fn recall(section: &Section) -> Option<Markup> {
    let share = |x: f64| percent(x);
    measures(
        section,
        "recall",
        "Share of the true attention that is on resident rows, %",
        &[
            Measure {
                name: "mean",
                get: |r: &crate::lines::Recall| r.mass_mean,
                write: share,
                better: f64::max,
            },
            Measure {
                name: "5th percentile",
                get: |r| r.mass_p5,
                write: share,
                better: f64::max,
            },
            Measure {
                name: "worst head",
                get: |r| r.mass_worst,
                write: share,
                better: f64::max,
            },
            Measure {
                name: "top-10 keys found",
                get: |r| r.topk,
                write: share,
                better: f64::max,
            },
        ],
        &|contender, n_ctx| section.recall(contender, n_ctx),
        &|r| format!("{} queries", grouped(r.queries)),
    )
}

/// Divergence by length; empty if it was not measured.
pub(crate) fn divergence(section: &Section) -> Option<Markup> {
    measures(
        section,
        "kld",
        "Next-token distribution against full attention's, teacher-forced",
        &[
            Measure {
                name: "mean KL, nats",
                get: |d: &crate::lines::Divergence| d.kld_mean,
                write: small,
                better: f64::min,
            },
            Measure {
                name: "largest KL, nats",
                get: |d| d.kld_max,
                write: small,
                better: f64::min,
            },
            Measure {
                name: "same top-1, %",
                get: |d| d.same_top1,
                write: |x| percent(x),
                better: f64::max,
            },
        ],
        &|contender, n_ctx| section.divergence(contender, n_ctx),
        &|d| format!("{} tokens", grouped(d.tokens)),
    )
}

fn measures<T>(
    section: &Section,
    task: &str,
    caption: &str,
    measures: &[Measure<T>],
    figures: &dyn Fn(&Contender, u64) -> Option<T>,
    note: &dyn Fn(&T) -> String,
) -> Option<Markup> {
    let lengths = section.values(|r| (r.task == task).then_some(r.n_ctx));
    let contenders = rows(section.contenders(|r| r.task == task));
    contenders.first()?;
    let columns: Vec<Column<'_>> = measures
        .iter()
        .map(|m| Column {
            name: m.name.to_owned(),
            note: None,
            keep: Box::new(|_| true),
        })
        .collect();
    Some(html! {
        div.scroll { table.scores {
            caption { (caption) }
            (head(&columns))
            @for n_ctx in lengths {
                @let all: Vec<Option<T>> = contenders.iter().map(|c| figures(c, n_ctx)).collect();
                @let best: Vec<Vec<bool>> = measures.iter().map(|m| {
                    let values: Vec<Option<f64>> = all.iter().map(|t| t.as_ref().map(m.get)).collect();
                    best(&contenders, &values, m.better)
                }).collect();
                tbody {
                    (group(&format!("{} tokens", tokens(n_ctx)), columns.len()))
                    @for (row, (contender, found)) in contenders.iter().zip(&all).enumerate() {
                        tr class=[class(&contenders, row)] {
                            (who(contender))
                            @for (measure, best) in measures.iter().zip(&best) {
                                @match found {
                                    None => (missing()),
                                    Some(found) => td.num title=(note(found)) {
                                        (bold(best[row], &(measure.write)((measure.get)(found))))
                                    },
                                }
                            }
                        }
                    }
                }
            }
        } }
    })
}
