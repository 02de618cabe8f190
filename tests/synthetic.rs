//! Synthetic models, of few layers and tokens, in llama.cpp and in the tiered cache.

use kiv::{Model, Outputs, Session};
use kiv_synthetic::{SHAPES, Synthetic};

/// Reads tokens and gives the logits of all.
fn logits(session: &mut Session, tokens: &[i32]) -> Vec<Vec<f32>> {
    let mut all = Vec::new();
    let show = |_, logits: &[f32]| all.push(logits.to_vec());
    session
        .read_with(tokens, Outputs::All, show, |_| {})
        .unwrap();
    all
}

fn deviation(values: &[f32]) -> f32 {
    let n = values.len() as f32;
    let mean = values.iter().sum::<f32>() / n;
    (values.iter().map(|v| (v - mean).powi(2)).sum::<f32>() / n).sqrt()
}

#[test]
fn every_shape_loads_and_is_tiered() {
    let folder = tempfile::tempdir().unwrap();
    for shape in &SHAPES {
        let synthetic = Synthetic::new(shape).layers(2).unwrap();
        let synthetic = synthetic.vocab(512).unwrap();
        let path = synthetic.file_in(folder.path(), |_, _| {}).unwrap();
        let model = Model::load(&path).unwrap();
        assert_eq!(model.n_vocab(), 512);
        // The tokenizer knows every byte, and gives back what it read.
        let text = "Zwölf Boxkämpfer, 12 w3\n";
        let tokens = model.tokenize(text, false);
        assert_eq!(model.detokenize(&tokens), text, "{}", shape.name);

        let session = |policy: &str| {
            let builder = model.session().policy(policy).ctx_size(4096);
            let builder = builder.sinks(4).window(64).block(16).budget(64).ubatch(32);
            builder.threads(1, 1).all_logits(true).build().unwrap()
        };
        let mut tiered = session("pq");
        let tokens = synthetic.tokens(tiered.pool().n_cells + 48, 1);
        let seen = logits(&mut tiered, &tokens[..96]);
        // While all is resident it is stock llama.cpp.
        let stock = logits(&mut session("full"), &tokens[..96]);
        assert!(seen == stock, "{}", shape.name);
        let more = logits(&mut tiered, &tokens[96..]);
        assert!(tiered.memory().host_kv > 0, "{}", shape.name);
        for logits in stock.iter().chain(&more) {
            assert!(logits.iter().all(|l| l.is_finite()), "{}", shape.name);
            // Neither all alike nor beyond what real models say.
            let deviation = deviation(logits);
            assert!(
                (0.3..3.0).contains(&deviation),
                "{}: {deviation}",
                shape.name
            );
        }
        // What was read before decides: the same token is not always followed alike.
        let again = logits(&mut tiered, &[tokens[0]]);
        assert!(again[0] != stock[0], "{}", shape.name);
        std::fs::remove_file(path).unwrap();
    }
}

#[test]
fn activations_stay_as_large_through_all_layers() {
    let folder = tempfile::tempdir().unwrap();
    let shape = kiv_synthetic::Shape::by_name("gemma-4-e2b").unwrap();
    let synthetic = Synthetic::new(shape).vocab(300).unwrap();
    for layers in [7, 12] {
        // Of which some use the caches of others.
        let synthetic = synthetic.layers(layers).unwrap();
        let path = synthetic.file_in(folder.path(), |_, _| {}).unwrap();
        let model = Model::load(&path).unwrap();
        let builder = model.session().policy("full").ctx_size(64);
        let mut session = builder.threads(1, 1).all_logits(true).build().unwrap();
        for logits in logits(&mut session, &synthetic.tokens(16, 2)) {
            let deviation = deviation(&logits);
            assert!((0.3..3.0).contains(&deviation), "{layers}: {deviation}");
        }
        std::fs::remove_file(path).unwrap();
    }
}
