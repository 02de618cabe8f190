//! Blocks swapped by a GPU's streams instead of ggml's copies: under a driver without a GPU,
//! whose memory is the host's, so that llama.cpp can compute on the CPU with a cache that is
//! lent to it. Nothing that comes out may differ.
#![cfg(all(feature = "cuda-swap", target_os = "linux"))]

#[macro_use]
#[path = "../../kiv-cuda/tests/emulated/mod.rs"]
mod emulated;

use kiv_cuda::open_or_say;
use kiv_cuda::search::{DeviceFinder, FinderConfig};
use kiv_index::Params;
use kiv_policies::Pq;
use kiv_policy::RowFormat;
use kiv_runtime::{Model, Outputs, Positions, Session, SessionBuilder, Token};
use std::path::Path;
use std::sync::Mutex;

emulated! {
    logits_are_those_of_the_plain_path, inner_same_logits, [];
    they_are_without_page_locked_memory, inner_same_logits, [("EMULATED_PINNED", "0")];
    remapped_keys_turn_in_their_slots, inner_remapped, [];
    rows_are_cut_and_policies_changed, inner_cuts, [];
    an_index_on_the_gpu_finds_the_same, inner_index, [("EMULATED_SHARED", "1")];
    an_index_stays_where_no_gpu_is, inner_no_index, [("EMULATED_FAULT", "no-device")];
    a_machine_without_a_gpu_goes_on, inner_none, [("EMULATED_FAULT", "no-device")];
    nothing_is_lent_unasked, inner_unasked, [];
}

fn model() -> Model {
    let models = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../models");
    Model::load(models.join("tiny-f16.gguf")).unwrap()
}

/// A pool of 256 cells.
fn small(model: &Model) -> SessionBuilder {
    let builder = model.session().sinks(4).window(64).block(16).budget(64);
    builder.ubatch(32).threads(1, 1).all_logits(true)
}

/// `n` tokens of a text that says new things.
fn text(model: &Model, n: usize) -> Vec<Token> {
    let mut text = String::new();
    for i in 0..n {
        let what = ["tower", "river", "mill"][i % 3];
        let who = ["Ada", "Ben", "Cid"][i % 5 % 3];
        let number = i * i % 1009;
        text += &format!("The {what} number {number} belongs to {who}. ");
    }
    let mut tokens = model.tokenize(&text, true);
    assert!(tokens.len() >= n);
    tokens.truncate(n);
    tokens
}

/// Logits of all tokens, the last ones read one by one.
fn logits(session: &mut Session, tokens: &[Token]) -> Vec<Vec<u32>> {
    let bits = |row: &[f32]| row.iter().map(|v| v.to_bits()).collect();
    let mut all = Vec::new();
    let (read, one_by_one) = tokens.split_at(tokens.len() - 24);
    let keep = |_: usize, row: &[f32]| all.push(bits(row));
    session.read_with(read, Outputs::All, keep, |_| {}).unwrap();
    for token in one_by_one {
        session.read_one_by_one(&[*token]).unwrap();
        all.push(bits(session.logits()));
    }
    all
}

/// Compares two sessions that read the same text; blocks of the second come by a GPU.
fn same(plain: &mut Session, gpu: &mut Session, tokens: &[Token], what: &str) {
    let (wanted, got) = (logits(plain, tokens), logits(gpu, tokens));
    assert_eq!(wanted.len(), got.len());
    let first = wanted.iter().zip(&got).position(|(a, b)| a != b);
    assert_eq!(first, None, "{what}: a token whose logits differ");
    let (compared, wrong) = gpu.compare_slots().unwrap();
    assert!(compared > 0 && wrong == 0, "{what}: {wrong} of {compared}");
    assert_eq!(plain.gpu_counters(), None);
    let (stats, counters) = (gpu.stats(), gpu.gpu_counters().unwrap());
    assert_eq!(stats.blocks_swapped, plain.stats().blocks_swapped, "{what}");
    assert!(counters.blocks >= stats.blocks_swapped, "{what}");
    assert!(counters.launches > 0, "{what}: {counters:?}");
    assert!(counters.landed > 0, "{what}: nothing was foreseen");
}

#[test]
#[ignore = "under the emulated driver"]
fn inner_same_logits() {
    let model = model();
    let tokens = text(&model, 700);
    let f16 = [RowFormat::F16; 2];
    for (cache, store) in [
        (f16, f16),
        (f16, [RowFormat::Q8_0; 2]),
        (f16, [RowFormat::Q8_0, RowFormat::Q4_0]),
        ([RowFormat::Q8_0; 2], [RowFormat::Q8_0; 2]),
    ] {
        for policy in ["exact", "pq"] {
            let new = || {
                let builder = small(&model).policy(policy);
                let builder = builder.cache_types(cache[0], cache[1]);
                builder.store_types(store[0], store[1])
            };
            let mut gpu = new().lend_host_memory().build().unwrap();
            let mut plain = new().build().unwrap();
            let what = format!("{policy}, {cache:?}, {store:?}");
            same(&mut plain, &mut gpu, &tokens, &what);
            // Nothing but what is missing, and all of a layer at once.
            let (stats, counters) = (gpu.stats(), gpu.gpu_counters().unwrap());
            assert_eq!(counters.blocks, stats.blocks_swapped, "{what}");
            assert!(counters.launches <= stats.selections, "{what}");
            told_layer_by_layer(&mut gpu, tokens[0]);
        }
    }
}

/// What is told of a token is in order, and of all layers; transfers are among it.
fn told_layer_by_layer(session: &mut Session, token: Token) {
    let timeline = session.read_timed(token).unwrap();
    let n_layers = session.geometry().unwrap().layers.len();
    assert_eq!(timeline.layers.len(), n_layers);
    let layers = timeline.layers.iter();
    let times = layers.flat_map(|l| [l.stopped, l.chosen, l.brought]);
    assert!(times.chain([timeline.total]).is_sorted());
    assert!(!timeline.transfers.is_empty());
    assert!(timeline.transfers.iter().all(|span| span.begin < span.end));
}

#[test]
#[ignore = "under the emulated driver"]
fn inner_remapped() {
    let model = model();
    let tokens = text(&model, 700);
    for store in [[RowFormat::F16; 2], [RowFormat::Q8_0; 2]] {
        let new = || {
            let builder = small(&model).policy("pq").positions(Positions::Remapped);
            builder.store_types(store[0], store[1])
        };
        let mut gpu = new().lend_host_memory().build().unwrap();
        let mut plain = new().build().unwrap();
        same(&mut plain, &mut gpu, &tokens, &format!("{store:?}"));
    }
    // There is a kernel that turns keys of f16, and no other.
    let builder = small(&model).policy("pq").positions(Positions::Remapped);
    let builder = builder.cache_types(RowFormat::Bf16, RowFormat::Bf16);
    let session = builder.lend_host_memory().build().unwrap();
    assert_eq!(session.gpu_counters(), None);
}

#[test]
#[ignore = "under the emulated driver"]
fn inner_cuts() {
    let model = model();
    let tokens = text(&model, 900);
    let new = || small(&model).policy("exact");
    let mut plain = new().build().unwrap();
    let mut gpu = new().lend_host_memory().build().unwrap();
    same(&mut plain, &mut gpu, &tokens[..600], "before");
    for session in [&mut plain, &mut gpu] {
        session.truncate(400).unwrap();
        let pq = kiv_policies::by_name("pq").unwrap();
        session.set_policy(pq).unwrap();
    }
    same(&mut plain, &mut gpu, &tokens[600..], "after");
}

/// Small eras, so that a short text has some.
fn sizes(dim: usize, scale: f32) -> Params {
    Params {
        segment: 64,
        era: 4,
        late: 1,
        list: 4,
        ..Params::new(dim, scale)
    }
}

/// Texts whose index is searched on a GPU, and after cuts: rests and all.
#[test]
#[ignore = "under the emulated driver"]
fn inner_index() {
    let model = model();
    let tokens = text(&model, 900);
    for positions in [Positions::Absolute, Positions::Remapped] {
        let config = FinderConfig {
            max_bytes: 64 << 20,
            warn: |what| panic!("{what}"),
        };
        let new = |policy: Pq| {
            let builder = small(&model).positions(positions).lend_host_memory();
            let builder = builder.custom_policy(Box::new(policy.with_sizes(sizes)));
            builder.build().unwrap()
        };
        let finder = DeviceFinder::new(open_or_say(0).unwrap(), config).unwrap();
        let mut device = new(Pq::default().with_finder(Box::new(finder)));
        let mut host = new(Pq::default().in_order());
        let mut searches = 0;
        for (cut, part) in [(None, 0..700), (Some(450), 700..900)] {
            for session in [&mut host, &mut device] {
                if let Some(n) = cut {
                    session.truncate(n).unwrap();
                }
            }
            let tokens = &tokens[part.clone()];
            let (wanted, got) = (logits(&mut host, tokens), logits(&mut device, tokens));
            let first = wanted.iter().zip(&got).position(|(a, b)| a != b);
            assert_eq!(
                first, None,
                "{positions:?}, {part:?}: a token whose logits differ"
            );
            assert_eq!(host.device_index(), None);
            let used = device.device_index().unwrap();
            assert!(used.searches > searches && used.bytes > 0, "{used:?}");
            searches = used.searches;
        }
        assert_eq!(host.stats().blocks_swapped, device.stats().blocks_swapped);
    }
}

/// The option as it is, of a session that does without.
#[test]
#[ignore = "under the emulated driver"]
fn inner_no_index() {
    let model = model();
    for (policy, line) in [
        (
            "pq",
            "the index stays on the host: CUDA: the driver finds no GPU number 0; kiv goes on on \
             the CPU",
        ),
        ("exact", "no index goes to a device: only pq has one"),
    ] {
        let builder = small(&model).policy(policy).index_on_device(true);
        let mut session = builder.warn(told).build().unwrap();
        session.read(&text(&model, 400)).unwrap();
        assert_eq!(session.device_index(), None);
        let lines = TOLD.lock().unwrap();
        assert!(lines.iter().any(|l| l == line), "{lines:?}");
    }
}

static TOLD: Mutex<Vec<String>> = Mutex::new(Vec::new());

fn told(what: &str) {
    TOLD.lock().unwrap().push(what.to_owned());
}

/// What is told by three sessions, two of which read a text longer than the pool all the same.
fn told_by_three() -> Vec<String> {
    let model = model();
    let stock = small(&model).policy("full").ctx_size(256).warn(told);
    stock.build().unwrap();
    for _ in 0..2 {
        let builder = small(&model).policy("exact").warn(told);
        let mut session = builder.build().unwrap();
        session.read(&text(&model, 400)).unwrap();
        assert_eq!(session.gpu_counters(), None);
        assert!(session.stats().blocks_swapped > 0);
    }
    TOLD.lock().unwrap().clone()
}

/// On this machine as it is: with a driver and a GPU there is nothing to tell.
#[test]
fn who_has_no_driver_is_told_once() {
    let absent = kiv_cuda::look_or_say(0).err();
    let lines: Vec<String> = absent.iter().map(ToString::to_string).collect();
    assert_eq!(told_by_three(), lines);
}

#[test]
#[ignore = "under the emulated driver"]
fn inner_none() {
    let line = "CUDA: the driver finds no GPU number 0; kiv goes on on the CPU";
    assert_eq!(told_by_three(), [line]);
}

/// Where there is a GPU, but the cache is not in its memory. ggml's backend, in a build that has
/// it, does not take this driver for one.
#[test]
#[ignore = "under the emulated driver"]
fn inner_unasked() {
    let lines = told_by_three();
    assert_eq!(
        lines.len(),
        usize::from(cfg!(feature = "cuda")),
        "{lines:?}"
    );
    let begins = "CUDA: there is a GPU, but ggml's backend for it computes nothing (";
    assert!(
        lines.iter().all(|line| line.starts_with(begins)),
        "{lines:?}"
    );
}
