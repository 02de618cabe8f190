//! What is not in slots: one of them may stand for it while text is generated.

mod support;

use kiv::{Model, Outputs, Session, SessionBuilder};
use kiv_eval::kl_divergence;
use support::{model, prose, small};

const TEXT: usize = 3000;
const READ: usize = 2900;

fn logits(builder: SessionBuilder) -> Vec<Vec<f32>> {
    let text = prose(&model(), TEXT);
    let mut session = builder.build().unwrap();
    session.read(&text[..READ]).unwrap();
    let mut all = Vec::new();
    for token in &text[READ..] {
        session.read_one_by_one(&[*token]).unwrap();
        all.push(session.logits().to_vec());
    }
    all
}

/// The same slots, one fewer for blocks, and nearer to full attention.
#[test]
fn generation_is_nearer_to_full_attention_with_it() {
    let model = model();
    let want = logits(model.session().policy("full").ctx_size(4096));
    let distance = |rests: bool| {
        let got = logits(small(&model).policy("pq").rests(rests));
        let each = want.iter().zip(&got).map(|(p, q)| kl_divergence(p, q));
        each.sum::<f64>() / want.len() as f64
    };
    let (with, without) = (distance(true), distance(false));
    println!("KL with {with:.5}, without {without:.5}");
    assert!(with < 0.8 * without, "with {with}, without {without}");
}

/// (slots that hold a block, of these: other bytes than the block has).
fn slots(session: &mut Session) -> (usize, usize) {
    session.compare_slots().unwrap()
}

/// It is there for one token at a time, and whole blocks are when many are read.
#[test]
fn reading_takes_the_slot_back() {
    let model = model();
    let text = prose(&model, TEXT);
    let mut session = small(&model).policy("pq").build().unwrap();
    session.read(&text[..READ]).unwrap();
    let (all, wrong) = slots(&mut session);
    assert!(all > 0 && wrong == 0);
    for _ in 0..2 {
        let n = session.tokens().len();
        session.read_one_by_one(&text[n..n + 3]).unwrap();
        let (some, wrong) = slots(&mut session);
        assert!(some < all && wrong == 0, "{some} of {all}, {wrong} wrong");
        session
            .read_with(&text[n + 3..n + 23], Outputs::Last, |_, _| {}, |_| {})
            .unwrap();
        assert_eq!(slots(&mut session), (all, 0));
    }
}

/// Layers that share a cache want blocks of it one after another, and give up the same slot.
#[test]
fn it_leaves_blocks_of_shared_caches_alone() {
    let folder = tempfile::tempdir().unwrap();
    for name in ["gemma4", "gemma3n"] {
        let spec = kiv_testmodels::by_name(name).unwrap();
        let model = Model::load(spec.write(folder.path()).unwrap()).unwrap();
        let text = prose(&model, TEXT);
        let builder = small(&model).window(128).policy("pq");
        let mut session = builder.build().unwrap();
        session.read(&text[..TEXT - 8]).unwrap();
        let (all, wrong) = slots(&mut session);
        assert!(all > 0 && wrong == 0);
        session.read_one_by_one(&text[TEXT - 8..]).unwrap();
        let (some, wrong) = slots(&mut session);
        assert!(
            some > 0 && wrong == 0,
            "{name}: {wrong} of {some} wrong, of {all}"
        );
    }
}

/// Turned off, a policy's rest is not asked for.
#[test]
fn it_can_be_turned_off() {
    let model = model();
    let text = prose(&model, TEXT);
    let mut session = small(&model).policy("pq").rests(false).build().unwrap();
    session.read(&text[..READ]).unwrap();
    let before = slots(&mut session);
    session.read_one_by_one(&text[READ..READ + 3]).unwrap();
    assert_eq!(slots(&mut session), before);
}
