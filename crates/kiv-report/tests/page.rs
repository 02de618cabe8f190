//! The page as a whole.

use kiv_report::{Report, ReportError};

const HEADER: &str = r#"{"header":true,"kiv_version":"0.1.0","model_arch":"qwen3","model_name":"a <b> & \"c\"","model_file":"m.gguf","model_bytes":5841344,"model_sha256":"88da2d21","cpu":"A Processor","os":"linux","threads":2,"threads_batch":2,"ubatch":512,"cache_type_k":"f16","cache_type_v":"f16","kv_window":1024,"kv_block":32,"kv_sinks":32,"samples":1,"seed":1}"#;

/// An answer; `rest` are further fields.
fn answer(task: &str, policy: &str, budget: u64, n_ctx: u64, pass: bool, rest: &str) -> String {
    format!(
        r#"{{"task":"{task}","policy":"{policy}","kv_budget":{budget},"n_ctx":{n_ctx},"pass":{pass}{rest}}}"#
    )
}

fn report(lines: &[String]) -> Report {
    let mut report = Report::default();
    report.add("out.jsonl", &lines.join("\n")).unwrap();
    report
}

fn page(lines: &[String]) -> String {
    report(lines).page().unwrap()
}

/// The page from one heading to the next, a tag a line.
fn part(page: &str, heading: &str) -> String {
    let from = page.find(&format!("<h2>{heading}</h2>")).expect(heading);
    let rest = &page[from..];
    let end = rest[4..].find("<h2>").map_or(rest.len(), |at| at + 4);
    rest[..end].replace("><", ">\n<")
}

fn answers() -> Vec<String> {
    let depth = |d: f64| format!(",\"depth\":{d}");
    vec![
        HEADER.to_owned(),
        answer("needle", "full", 0, 4096, true, &depth(0.0)),
        answer("needle", "full", 0, 4096, true, &depth(50.0)),
        answer("needle", "exact", 512, 4096, true, &depth(0.0)),
        answer("needle", "exact", 512, 4096, true, &depth(50.0)),
        answer("needle", "exact", 512, 16384, false, &depth(50.0)),
        answer("needle", "window", 512, 4096, true, &depth(0.0)),
        answer("needle", "window", 512, 4096, false, &depth(50.0)),
        answer("count", "full", 0, 4096, false, ",\"records\":47"),
        answer("track", "exact", 512, 4096, true, ",\"hops\":1"),
        answer("phonebook", "exact", 512, 5012, true, ",\"entries\":200"),
    ]
}

#[test]
fn tables_have_full_attention_first_and_dashes_for_what_is_missing() {
    insta::assert_snapshot!(part(&page(&answers()), "Tasks"));
}

#[test]
fn answers_are_compared_with_full_attentions() {
    let header = HEADER.replace(r#""seed":1"#, r#""kv_read_policy":"pq","seed":1"#);
    // (depth, full attention's answer, that of `exact`, which has `pq`'s contexts)
    let asked = [
        (0.0, "12345.", "12345, as"),
        (10.0, "12345.", "12999"),
        (20.0, "99999", "12345"),
        (30.0, "99999.", "99999"),
        (40.0, "99999", "88888"),
    ];
    let line = |policy: &str, depth: f64, got: &str, rest: &str| {
        let rest = format!(r#","depth":{depth},"expected":"12345","got":" {got}"{rest}"#);
        answer("needle", policy, 512, 4096, got.starts_with("12345"), &rest)
    };
    let mut lines = vec![HEADER.to_owned()];
    lines.extend(asked.map(|(depth, full, _)| line("full", depth, full, "")));
    lines.push(header);
    lines.extend(asked.map(|(d, _, exact)| line("exact", d, exact, r#","read_by":"pq""#)));
    // Asked of nobody else.
    lines.push(line("exact", 50.0, "12345", r#","read_by":"pq""#));
    let page = page(&lines);
    insta::assert_snapshot!(part(&page, "Against full attention"));
    // Who reads does not tell setups apart.
    assert_eq!(page.matches("<h2>Conditions</h2>").count(), 1);
}

#[test]
fn what_the_model_cannot_do_is_said() {
    insta::assert_snapshot!(part(&page(&answers()), "What the model cannot do"));
}

#[test]
fn names_from_files_are_escaped() {
    let page = page(&answers());
    assert!(page.contains("a &lt;b&gt; &amp; &quot;c&quot;"));
    assert!(!page.contains("<b> &"));
}

#[test]
fn nothing_is_loaded_from_elsewhere() {
    let page = page(&answers()).replace("http://www.w3.org/2000/svg", "");
    for outside in [
        "http:", "https:", "src=", "url(", "@import", "<script", "<link",
    ] {
        assert!(!page.contains(outside), "{outside}");
    }
}

#[test]
fn later_lines_win() {
    let mut lines = answers();
    assert!(part(&page(&lines), "Tasks").contains("<small>1/2</small>"));
    lines.push(answer(
        "needle",
        "window",
        512,
        4096,
        true,
        ",\"depth\":50.0",
    ));
    let tasks = part(&page(&lines), "Tasks");
    assert!(!tasks.contains("<small>1/2</small>") && !tasks.contains("/3<"));
}

#[test]
fn seeds_are_pooled_and_setups_are_not() {
    let of = |header: &str, seed: u64| {
        let line = answer(
            "needle",
            "full",
            0,
            4096,
            true,
            &format!(",\"seed\":{seed}"),
        );
        vec![header.to_owned(), line]
    };
    let other_seed = HEADER.replace("\"seed\":1", "\"seed\":2");
    let other_window = HEADER.replace("1024", "512");
    let pooled = page(&[of(HEADER, 1), of(&other_seed, 2)].concat());
    assert!(pooled.contains("<small>2/2</small>") && pooled.contains("1 and 2"));
    let lines = [of(HEADER, 1), of(&other_window, 1)].concat();
    let apart = page(&lines);
    assert!(!apart.contains("<small>2/2</small>") && apart.contains("window 512"));
    let with = |fields: &str| HEADER.replace("\"samples\"", &format!("{fields},\"samples\""));
    // As files are that were written before these could be chosen.
    let usual = with(r#""kv_pos":"absolute","kv_rest":true,"kv_store_k":"f16","kv_store_v":"f16""#);
    let pooled = page(&[of(HEADER, 1), of(&usual, 2)].concat());
    assert!(pooled.contains("<small>2/2</small>") && !pooled.contains("remapped"));
    for (fields, told) in [
        (r#""kv_rest":false"#, "no rest"),
        (r#""kv_pos":"remapped""#, "remapped positions"),
        (
            r#""kv_store_k":"q8_0","kv_store_v":"q4_0""#,
            "host rows q8_0/q4_0",
        ),
    ] {
        let apart = page(&[of(&usual, 1), of(&with(fields), 2)].concat());
        assert!(
            !apart.contains("<small>2/2</small>") && apart.contains(told),
            "{told}"
        );
    }
}

#[test]
fn attention_and_divergence_have_tables_and_figures() {
    let recall = |policy: &str, budget: u64, mass: f64| {
        format!(
            r#"{{"task":"recall","policy":"{policy}","kv_budget":{budget},"n_ctx":4096,"mass_mean":{mass},"mass_p5":0.5,"mass_worst":0.25,"topk":0.75,"mass_by_head":[[{mass},0.25],[1.0,0.5]],"queries":100}}"#
        )
    };
    let kld = |policy: &str, budget: u64, kl: f64| {
        format!(
            r#"{{"task":"kld","policy":"{policy}","kv_budget":{budget},"n_ctx":4096,"kld_mean":{kl},"kld_max":1.5,"same_top1":0.99,"tokens":200}}"#
        )
    };
    let lines = vec![
        HEADER.to_owned(),
        recall("exact", 512, 0.9),
        recall("exact", 1024, 0.95),
        recall("quest", 512, 0.7),
        kld("full", 0, 0.0),
        kld("exact", 512, 2.5e-4),
        kld("quest", 512, 0.125),
    ];
    let report = report(&lines);
    let page = report.page().unwrap();
    insta::assert_snapshot!(part(&page, "Divergence from full attention"));
    let table = part(&page, "Attention recall");
    insta::assert_snapshot!(table[..table.find("<h3>").unwrap()]);
    let names: Vec<String> = report.figures().into_iter().map(|f| f.name).collect();
    assert_eq!(
        names,
        [
            "budget-attention-recall-4-k-tokens",
            "recall-at-4-k-exact-budget-512",
            "recall-at-4-k-exact-budget-1-k",
            "recall-at-4-k-quest-budget-512",
        ]
    );
    assert!(!page.contains("<h2>Tasks</h2>"));
}

#[test]
fn no_result_is_an_error() {
    let mut report = Report::default();
    report.add("a.jsonl", "\n").unwrap();
    report.add("b.jsonl", HEADER).unwrap();
    let error = report.page().unwrap_err();
    assert_eq!(
        error.to_string(),
        "there is no result of `kiv eval` in a.jsonl, b.jsonl: give files that --out wrote"
    );
    let error = report.add("c.jsonl", "oops").unwrap_err();
    assert!(
        matches!(error, ReportError::Line { line: 1, .. }),
        "{error}"
    );
}
