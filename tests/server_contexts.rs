//! Contexts of a server on disk: found again, given back, shared, bounded.

mod support;

use kiv::{Model, Session, Token};
use kiv_server::{Engine, EngineOptions, Event, KeptContexts, Summary};
use std::path::Path;
use support::engine::submit;
use support::{model, prose};
use tokio::sync::mpsc::UnboundedReceiver;

fn engine(model: &Model, folder: &Path, sessions: usize, most: usize) -> Engine {
    warned_engine(model, folder, (sessions, most), |what| panic!("{what}"))
}

fn warned_engine(
    model: &Model,
    folder: &Path,
    (sessions, most): (usize, usize),
    warn: fn(&str),
) -> Engine {
    let kept = KeptContexts {
        folder: folder.to_owned(),
        most,
        warn,
    };
    let options = EngineOptions {
        room: None,
        sessions,
        queue: 8,
        kept: Some(kept),
    };
    Engine::start(model.clone(), options, open).unwrap()
}

fn open(model: &Model, folder: Option<&Path>) -> Result<Session, kiv::Error> {
    let builder = support::small(model);
    match folder {
        Some(folder) => builder.context_dir(folder).build(),
        None => builder.build(),
    }
}

fn end(mut told: UnboundedReceiver<Event>) -> (String, Summary) {
    let mut text = String::new();
    loop {
        match told.blocking_recv().expect("an end is told") {
            Event::Text { text: more, .. } => text += &more,
            Event::Done(summary) => return (text, summary),
            Event::Failed(why) => panic!("{why}"),
            Event::Reading { .. } => {}
        }
    }
}

fn ask(engine: &Engine, prompt: &[Token]) -> (String, Summary) {
    end(submit(engine, prompt, 8))
}

/// A text of `n` tokens, and questions about it.
fn texts(model: &Model, n: usize) -> (Vec<Token>, [Vec<Token>; 2]) {
    let text = prose(model, n);
    let question = |words: &str| [text.clone(), model.tokenize(words, false)].concat();
    let questions = [question(" And so"), question("\nWho was that?")];
    (text, questions)
}

fn folders(folder: &Path) -> usize {
    std::fs::read_dir(folder).unwrap().count()
}

#[test]
fn what_was_read_is_not_read_again_by_the_next_process() {
    let model = model();
    let folder = tempfile::tempdir().unwrap();
    let (text, [first, second]) = texts(&model, 1500);
    let mut alone = open(&model, None).unwrap();
    alone.read(&text).unwrap();

    let server = engine(&model, folder.path(), 2, 8);
    let (_, summary) = ask(&server, &first);
    assert_eq!(summary.reused, 0);
    let (want, _) = ask(&server, &second);
    // Too little to be worth a folder.
    ask(&server, &model.tokenize("A title, please.", true));
    drop(server);
    assert_eq!(folders(folder.path()), 1);

    let server = engine(&model, folder.path(), 2, 8);
    assert_eq!(folders(folder.path()), 2, "one more for the next text");
    let (got, summary) = ask(&server, &second);
    assert!(summary.reused >= text.len(), "{summary:?}");
    assert_eq!(got, want);
    // A session whose settings are others cannot take it up, nor does it remove it.
    drop(server);
    let kept = KeptContexts {
        folder: folder.path().to_owned(),
        most: 1,
        warn: |what| panic!("{what}"),
    };
    let options = EngineOptions {
        room: None,
        sessions: 1,
        queue: 8,
        kept: Some(kept),
    };
    let other = Engine::start(model.clone(), options, |model, folder| {
        let builder = support::small(model).budget(128);
        builder
            .context_dir(folder.expect("contexts are kept"))
            .build()
    });
    let other = other.unwrap();
    assert_eq!(ask(&other, &second).1.reused, 0);
    drop(other);
    assert_eq!(folders(folder.path()), 2);
}

/// One session, and more texts than that: each comes back from disk.
#[test]
fn helper_calls_do_not_lose_a_document() {
    let model = model();
    let folder = tempfile::tempdir().unwrap();
    let (text, [first, second]) = texts(&model, 1200);
    let helper = prose(&model, 2400)[1300..].to_vec();
    let server = engine(&model, folder.path(), 1, 8);
    ask(&server, &first);
    for _ in 0..2 {
        let (_, summary) = ask(&server, &helper);
        assert!(summary.reused == 0 || summary.reused + 64 >= helper.len());
        let (_, summary) = ask(&server, &second);
        assert!(summary.reused >= text.len(), "{summary:?}");
    }
    assert_eq!(folders(folder.path()), 2);
}

/// What is being used is shared too: its blocks are linked, not read again.
#[test]
fn a_context_in_use_is_copied() {
    let model = model();
    let folder = tempfile::tempdir().unwrap();
    let (text, [first, second]) = texts(&model, 1200);
    let server = engine(&model, folder.path(), 2, 8);
    ask(&server, &first);
    let mut long = submit(&server, &first, 400);
    while !matches!(long.blocking_recv(), Some(Event::Text { .. })) {}
    let (_, summary) = ask(&server, &second);
    assert!(summary.reused >= text.len(), "{summary:?}");
    let (_, summary) = end(long);
    assert_eq!(summary.generated, 400);
}

#[test]
fn a_context_that_another_server_has_is_read_again() {
    let model = model();
    let folder = tempfile::tempdir().unwrap();
    let (_, [first, second]) = texts(&model, 1000);
    let one = engine(&model, folder.path(), 1, 9);
    let (answer, _) = ask(&one, &first);
    // Nobody waits: it is made durable, and stays open.
    let context = folder.path().join("context-000000/manifest");
    while !context.exists() {
        std::thread::sleep(std::time::Duration::from_millis(10));
    }
    let other = warned_engine(&model, folder.path(), (1, 9), |what| {
        assert!(what.contains("could not be taken up"), "{what}");
        assert!(what.contains("in use by another process"), "{what}");
    });
    let (again, summary) = ask(&other, &first);
    assert_eq!((again, summary.reused), (answer, 0));
    ask(&other, &second);
    assert!(context.exists());
}

#[test]
fn the_oldest_contexts_go() {
    let model = model();
    let folder = tempfile::tempdir().unwrap();
    let all = prose(&model, 4000);
    let server = engine(&model, folder.path(), 1, 2);
    for start in [0, 1000, 2000, 3000] {
        ask(&server, &all[start..start + 900]);
    }
    // Two, and the one that is open.
    assert_eq!(folders(folder.path()), 3);
    assert!(ask(&server, &all[2000..2900]).1.reused > 800);
    assert_eq!(ask(&server, &all[..900]).1.reused, 0);
}
