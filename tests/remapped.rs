//! Positions within the trained length: `--kv-pos remapped`. That what queries meet in
//! the slots is what policies are shown is checked for every architecture in
//! `models.rs`.

mod support;

use kiv::policy::RowFormat;
use kiv::{Error, Positions, Session, SessionBuilder};
use kiv_haystack::{Haystack, HaystackSpec};
use support::{answers, kiv, model, prose, small};

fn remapped(builder: SessionBuilder) -> SessionBuilder {
    builder.positions(Positions::Remapped)
}

/// Logits after `question`, read token by token.
fn answer(session: &mut Session, question: &[i32]) -> Vec<f32> {
    session.read_one_by_one(question).unwrap();
    session.logits().to_vec()
}

/// How many needles of a text are found.
fn found_in(session: &mut Session, text: &Haystack) -> usize {
    answers(session, text)
        .into_iter()
        .filter(|found| *found)
        .count()
}

#[test]
fn nothing_is_moved_before_something_has_left_the_pool() {
    let model = model();
    let mut far = remapped(small(&model)).build().unwrap();
    let mut near = small(&model).build().unwrap();
    let n_cells = far.pool().n_cells;
    let text = prose(&model, n_cells + 200);
    let (fits, rest) = text.split_at(n_cells - 1);
    far.read(fits).unwrap();
    near.read(fits).unwrap();
    assert!(far.logits() == near.logits());
    far.read(rest).unwrap();
    near.read(rest).unwrap();
    assert!(far.logits() != near.logits());
}

#[test]
fn facts_are_found_in_a_text_of_many_pools() {
    let model = model();
    let spec = HaystackSpec::new(5, 6000, vec![0.0, 0.2, 0.4, 0.6, 0.8, 1.0]);
    let text = Haystack::build(&spec, &mut |text| model.tokenize(text, false).len()).unwrap();
    for policy in ["pq", "exact"] {
        let builder = model
            .session()
            .window(256)
            .budget(512)
            .ubatch(128)
            .policy(policy);
        let mut session = remapped(builder.threads(1, 1)).build().unwrap();
        let found = found_in(&mut session, &text);
        assert!(session.tokens().len() > 4 * session.pool().n_cells);
        // The model was never trained for this; it is a matter of where tokens are.
        assert!(found >= 5, "{policy}: {found} of 6");
    }
}

#[test]
fn a_model_trained_for_1536_tokens_finds_facts_in_eight_times_as_many() {
    let path = support::bundled_path().with_file_name("tiny-short-f16.gguf");
    let model = kiv::Model::load(path).unwrap();
    assert_eq!(model.n_ctx_train(), 1536);
    let depths = (0..12).map(|i| f64::from(i) / 12.0).collect();
    let spec = HaystackSpec::new(1, 12_288, depths);
    let text = Haystack::build(&spec, &mut |text| model.tokenize(text, false).len()).unwrap();
    let found = |positions| {
        let builder = model.session().window(512).budget(1024).ubatch(256);
        let builder = builder.threads(1, 1).ctx_size(1 << 14);
        let mut session = builder.positions(positions).build().unwrap();
        found_in(&mut session, &text)
    };
    // Under full attention it finds two of three in a text that it was trained for.
    let (near, far) = (found(Positions::Remapped), found(Positions::Absolute));
    assert!(near >= 5 && far <= 3, "{near} remapped, {far} absolute");
}

#[test]
fn what_is_taken_back_is_read_again_the_same() {
    let model = model();
    let text = prose(&model, 2200);
    let (text, question) = text.split_at(2100);
    let builder = || remapped(small(&model).policy("exact").ctx_size(1 << 14));
    let mut session = builder().build().unwrap();
    session.read(text).unwrap();
    // Room for the question is made once.
    answer(&mut session, question);
    session.rewind(text.len()).unwrap();
    let first = answer(&mut session, question);
    // Within the window.
    session.rewind(text.len()).unwrap();
    assert!(answer(&mut session, question) == first);
    // Far beyond: rows come back from the cold store, where their keys are turned. They
    // are rounded once more, and no more than that.
    session.read(&text[..1000]).unwrap();
    session.rewind(text.len()).unwrap();
    let again = answer(&mut session, question);
    let kl = kiv_eval::kl_divergence(&first, &again);
    assert!(kl < 1e-3, "KL {kl}");
    // All the way, to where nothing had left the pool.
    session.rewind(100).unwrap();
    let mut fresh = builder().build().unwrap();
    fresh.read(&text[..100]).unwrap();
    let (first, again) = (answer(&mut fresh, question), answer(&mut session, question));
    let kl = kiv_eval::kl_divergence(&first, &again);
    assert!(kl < 1e-3, "KL {kl}");
}

#[test]
fn a_context_goes_on_in_another_session_and_only_as_it_began() {
    let model = model();
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path().join("context");
    let text = prose(&model, 1300);
    let (text, question) = text.split_at(1200);
    let build = || {
        let builder = small(&model).ctx_size(1 << 14);
        remapped(builder.context_dir(&folder)).build().unwrap()
    };
    let mut session = build();
    session.read(text).unwrap();
    session.commit().unwrap();
    let kept = answer(&mut session, question);
    drop(session);
    let mut session = build();
    assert_eq!(session.tokens(), text);
    assert!(answer(&mut session, question) == kept);
    drop(session);

    let builder = small(&model).ctx_size(1 << 14).context_dir(&folder);
    let error = builder.build().err().unwrap().to_string();
    assert!(error.contains("--kv-pos"), "{error}");
}

#[test]
fn the_program_goes_on_with_a_remapped_context() {
    let folder = tempfile::tempdir().unwrap();
    let text = folder.path().join("text.txt");
    std::fs::write(
        &text,
        "The secret code of Silver Fox is 48213. ".repeat(400),
    )
    .unwrap();
    let shared = [
        "run", "--json", "-n", "8", "--temp", "0", "--kv-dir", "context",
    ];
    let small = [
        "--kv-window",
        "256",
        "--kv-budget",
        "512",
        "-ub",
        "128",
        "-c",
        "16384",
    ];
    let mut first = [&shared[..], &small[..]].concat();
    first.extend(["--kv-pos", "remapped", "-f", "text.txt"]);
    kiv(folder.path(), &first).assert().success();
    // The flag is taken from the context.
    let mut next = shared.to_vec();
    next.extend(["-p", "The secret code of Silver Fox is"]);
    let done = kiv(folder.path(), &next).assert().success();
    let said = String::from_utf8_lossy(&done.get_output().stderr).into_owned();
    assert!(said.contains("--kv-pos remapped"), "{said}");
    let out = String::from_utf8_lossy(&done.get_output().stdout).into_owned();
    assert!(out.contains("48213"), "{out}");
}

#[test]
fn what_cannot_be_remapped_is_refused() {
    let model = model();
    let quantized = small(&model).cache_types(RowFormat::Q8_0, RowFormat::Q8_0);
    let error = remapped(quantized).build().err().unwrap();
    assert!(matches!(error, Error::CannotRemap { .. }), "{error}");
    assert!(error.to_string().contains("--cache-type-k f16"), "{error}");

    // A window that is longer than the model was trained for.
    let folder = tempfile::tempdir().unwrap();
    let spec = kiv_testmodels::by_name("llama-gqa").unwrap();
    let model = kiv::Model::load(spec.write(folder.path()).unwrap()).unwrap();
    let wide = model
        .session()
        .window(140_000)
        .ctx_size(1 << 20)
        .threads(1, 1);
    let error = remapped(wide).build().err().unwrap();
    assert!(error.to_string().contains("--kv-window"), "{error}");
}
