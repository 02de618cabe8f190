use kiv_runtime::*;
fn main() -> Result<(), Error> {
    let args: Vec<String> = std::env::args().collect();
    let policy = &args[1];
    let n: usize = args[2].parse().unwrap();
    let budget: usize = args[3].parse().unwrap();
    let model = Model::load("models/tiny-needle-f16.gguf")?;
    eprintln!("{}", system_info());
    let depths: Vec<f64> = (0..11).map(|i| i as f64 / 10.0).collect();
    let hay =
        kiv_haystack::Haystack::build(&kiv_haystack::HaystackSpec::new(7, n, depths), &mut |t| {
            model.tokenize(t, false).len()
        })
        .unwrap();
    let toks = model.tokenize(&hay.text, true);
    eprintln!("{} tokens", toks.len());
    let mut s = model
        .session()
        .policy(policy)
        .budget(budget)
        .window(1024)
        .build()?;
    let t = std::time::Instant::now();
    s.read(&toks)?;
    eprintln!("prefill {:?} {:?} {:?}", t.elapsed(), s.stats(), s.memory());
    let base = s.tokens().len();
    let mut ok = 0;
    for p in &hay.needles {
        s.read_one_by_one(&model.tokenize(&p.needle.question, false))?;
        let mut text = String::new();
        let o = GenerateOptions {
            max_tokens: Some(6),
            sampling: Sampling::greedy(),
            ..Default::default()
        };
        for piece in s.generate(o) {
            text += &piece?.text;
        }
        let pass = p.needle.is_answered_by(&text);
        ok += pass as usize;
        eprintln!(
            "{:.1} {} {} {:?} {}",
            p.depth, p.needle.name, p.needle.code, text, pass
        );
        s.truncate(base)?;
    }
    eprintln!("{ok}/{} {:?}", hay.needles.len(), s.stats());
    Ok(())
}
