//! What a session promises when things go right and when they go wrong.

mod support;

use kiv::policy::{
    BlockId, ColdRows, Geometry, Policy, PolicyError, SealedBlocks, SelectRequest, Selection,
    conformance,
};
use kiv::{
    ChatTemplate, Error, Finish, GenerateOptions, Message, Model, Outputs, Positions, Sampling,
    Session,
};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use support::{model, prose, small};

fn pool_len(model: &Model) -> usize {
    small(model).build().unwrap().pool().n_cells
}

/// Behaves like `inner` until call number `after`, then does `what`.
struct Faulty {
    after: usize,
    calls: usize,
    n_slots: usize,
    what: Fault,
}

#[derive(Clone, Copy, Debug)]
enum Fault {
    Duplicate,
    Unknown,
    TooMany,
    Error,
    Panic,
    SealError,
}

impl Policy for Faulty {
    fn name(&self) -> &'static str {
        "faulty"
    }
    fn start(&mut self, geometry: &Geometry) -> Result<(), PolicyError> {
        self.n_slots = geometry.n_slots;
        Ok(())
    }
    fn seal(&mut self, _: &SealedBlocks<'_>) -> Result<(), PolicyError> {
        if matches!(self.what, Fault::SealError) {
            self.calls += 1;
            if self.calls > self.after {
                return Err(PolicyError("the index is full".to_owned()));
            }
        }
        Ok(())
    }
    fn select(&mut self, r: &SelectRequest<'_>, s: &mut Selection) -> Result<(), PolicyError> {
        let n = r.cold.n_blocks();
        s.head_mut(0)
            .extend((n.saturating_sub(self.n_slots)..n).map(|b| b as BlockId));
        if matches!(self.what, Fault::SealError) {
            return Ok(());
        }
        self.calls += 1;
        if self.calls <= self.after {
            return Ok(());
        }
        let head = s.head_mut(1);
        match self.what {
            Fault::Duplicate => head.extend([0, 0]),
            Fault::Unknown => head.push(n as BlockId),
            Fault::TooMany => head.extend(0..=self.n_slots as BlockId),
            Fault::Error => return Err(PolicyError("lost its index".to_owned())),
            Fault::Panic => panic!("a bug in a policy"),
            Fault::SealError => {}
        }
        Ok(())
    }
}

/// The error with its causes.
fn told(error: &Error) -> String {
    let mut text = error.to_string();
    let mut cause = std::error::Error::source(error);
    while let Some(error) = cause {
        text += ": ";
        text += &error.to_string();
        cause = error.source();
    }
    text
}

#[test]
fn a_policy_that_answers_nonsense_is_an_error_and_the_session_survives() {
    let model = model();
    let tokens = prose(&model, 800);
    for (what, words) in [
        (Fault::Duplicate, "block 0 twice"),
        (Fault::Unknown, "unknown block"),
        (Fault::TooMany, "5 blocks for 4 slots"),
        (Fault::Error, "lost its index"),
        (Fault::Panic, "a bug in a policy"),
        (Fault::SealError, "the index is full"),
    ] {
        let policy = Faulty {
            after: 40,
            calls: 0,
            n_slots: 0,
            what,
        };
        let mut session = small(&model)
            .custom_policy(Box::new(policy))
            .build()
            .unwrap();
        let error = session.read(&tokens).unwrap_err();
        assert!(told(&error).contains(words), "{what:?}: {}", told(&error));
        // Whole micro-batches stay; the failed one is taken back.
        let read = session.tokens().len();
        assert!(
            read > 0 && read < tokens.len() && read.is_multiple_of(32),
            "{what:?}: {read}"
        );
        assert_eq!(session.tokens(), &tokens[..read]);
        let before = session.memory();
        // The fault is permanent: it is told again, and nothing is lost.
        assert!(session.read(&tokens[read..]).is_err());
        assert_eq!(session.tokens().len(), read);
        assert_eq!(session.memory(), before);
    }
}

/// Fails once, if at all, in the middle of a micro-batch.
struct Once(Option<Fault>, Arc<AtomicUsize>);

impl Policy for Once {
    fn name(&self) -> &'static str {
        "once"
    }
    fn start(&mut self, _: &Geometry) -> Result<(), PolicyError> {
        Ok(())
    }
    fn select(&mut self, r: &SelectRequest<'_>, s: &mut Selection) -> Result<(), PolicyError> {
        let n = r.cold.n_blocks() as BlockId;
        for (i, head) in s.heads_mut().iter_mut().enumerate() {
            head.extend([n / 2 + i as BlockId % 2, n - 1]);
        }
        if let Some(fault) = self.0.take_if(|_| r.layer == 2 && n > 12) {
            self.1.fetch_add(1, Ordering::Relaxed);
            match fault {
                Fault::Panic => panic!("just once"),
                Fault::Unknown => s.head_mut(1).push(n),
                _ => return Err(PolicyError("just once".to_owned())),
            }
        }
        Ok(())
    }
}

#[test]
fn after_a_failed_micro_batch_reading_goes_on_as_if_it_had_not_been() {
    let model = model();
    let tokens = prose(&model, 900);
    let failures = Arc::new(AtomicUsize::new(0));
    let read_all = |fault, positions| {
        let policy = Once(fault, Arc::clone(&failures));
        let mut session = small(&model)
            .custom_policy(Box::new(policy))
            .positions(positions)
            .build()
            .unwrap();
        while session.tokens().len() < tokens.len() {
            let n = session.tokens().len();
            let next = n..tokens.len().min(n + 32);
            if session.read(&tokens[next]).is_ok() {
                let (_, wrong) = session.compare_slots().unwrap();
                assert_eq!(wrong, 0, "{fault:?}, {positions:?}, {n} tokens");
            }
        }
        (session.logits().to_vec(), session.memory())
    };
    for positions in Positions::ALL {
        let (clean, memory) = read_all(None, positions);
        for fault in [Fault::Error, Fault::Panic, Fault::Unknown] {
            failures.store(0, Ordering::Relaxed);
            let (failed, memory_after) = read_all(Some(fault), positions);
            assert_eq!(failures.load(Ordering::Relaxed), 1);
            assert_eq!(memory, memory_after);
            // Which slot a block sits in may differ by the failed step: rounding only.
            let difference = clean
                .iter()
                .zip(&failed)
                .map(|(a, b)| (a - b).abs())
                .fold(0.0, f32::max);
            assert!(difference < 0.5, "logits differ by {difference}");
        }
    }
}

/// Forgets more than it is told to, and fails as often as it is asked to.
#[derive(Default)]
struct Moody {
    /// Blocks may be missing that are sealed.
    forgot: bool,
    forgetting: Arc<AtomicUsize>,
    taking_up: Arc<AtomicUsize>,
}

impl Moody {
    fn fails(count: &AtomicUsize, what: &str) -> Result<(), PolicyError> {
        let one_less = |n: usize| n.checked_sub(1);
        let fails = count.fetch_update(Ordering::Relaxed, Ordering::Relaxed, one_less);
        fails.map_or(Ok(()), |_| Err(PolicyError(format!("cannot {what}"))))
    }
}

impl Policy for Moody {
    fn name(&self) -> &'static str {
        "moody"
    }
    fn start(&mut self, _: &Geometry) -> Result<(), PolicyError> {
        Ok(())
    }
    fn sealed(&mut self, _: &dyn ColdRows) -> Result<(), PolicyError> {
        Self::fails(&self.taking_up, "take up")?;
        self.forgot = false;
        Ok(())
    }
    fn truncate(&mut self, _: usize) -> Result<(), PolicyError> {
        Self::fails(&self.forgetting, "forget")?;
        self.forgot = true;
        Ok(())
    }
    fn select(&mut self, r: &SelectRequest<'_>, s: &mut Selection) -> Result<(), PolicyError> {
        if self.forgot {
            return Err(PolicyError("asked of blocks that it forgot".to_owned()));
        }
        let n = r.cold.n_blocks() as BlockId;
        s.heads_mut().iter_mut().for_each(|head| head.push(n - 1));
        Ok(())
    }
}

#[test]
fn a_cut_that_fails_half_way_loses_the_session_and_no_more() {
    let model = model();
    let tokens = prose(&model, 700);
    let build = |policy| small(&model).custom_policy(Box::new(policy)).build();
    let mut fresh = build(Moody::default()).unwrap();
    fresh.read(&tokens).unwrap();
    for (forgetting, taking_up) in [(1, 0), (0, 1)] {
        for all in [false, true] {
            let policy = Moody::default();
            let counts = [&policy.forgetting, &policy.taking_up].map(Arc::clone);
            let mut session = build(policy).unwrap();
            session.read(&tokens[..600]).unwrap();
            counts[0].store(forgetting, Ordering::Relaxed);
            counts[1].store(taking_up, Ordering::Relaxed);
            let failed = if all {
                session.clear()
            } else {
                session.truncate(300)
            };
            assert!(told(&failed.unwrap_err()).contains("cannot"));
            // It is neither what it was nor what it should have become.
            assert!(matches!(session.read(&tokens[..1]), Err(Error::Broken)));
            assert!(matches!(session.truncate(100), Err(Error::Broken)));
            assert!(matches!(session.commit(), Err(Error::Broken)));
            assert_eq!(session.reuse(&tokens).unwrap(), 0);
            session.read(&tokens).unwrap();
            assert_eq!(session.logits(), fresh.logits());
        }
    }
}

/// When sealing fails a policy is told to forget the blocks, and may forget older ones, too.
#[test]
fn a_policy_is_told_again_of_what_it_forgot() {
    let model = model();
    let tokens = prose(&model, 700);
    for fails in 1..=3 {
        let policy = Moody::default();
        let taking_up = Arc::clone(&policy.taking_up);
        let builder = small(&model).custom_policy(Box::new(policy));
        let mut session = builder.build().unwrap();
        // There is room for one more token now, but not for 32.
        session.read(&tokens[..256]).unwrap();
        session.read(&tokens[256..264]).unwrap();
        taking_up.store(fails, Ordering::Relaxed);
        let error = session.read(&tokens[264..296]).unwrap_err();
        assert!(told(&error).contains("cannot take up"), "{}", told(&error));
        // What cannot be made up for at once is before the next selection.
        let next = session.read_one_by_one(&tokens[264..265]);
        assert_eq!(next.is_ok(), fails < 3);
        if let Err(error) = next {
            assert!(told(&error).contains("cannot take up"), "{}", told(&error));
        }
        let read = session.tokens().len();
        session.read(&tokens[read..]).unwrap();
        assert_eq!(session.tokens(), tokens);
        assert_eq!(session.compare_slots().unwrap().1, 0);
    }
}

/// Of a recurrent model a micro-batch that failed cannot be taken back.
#[test]
fn a_lost_session_begins_anew() {
    let folder = tempfile::tempdir().unwrap();
    let file = kiv_testmodels::by_name("jamba")
        .unwrap()
        .write(folder.path());
    let model = Model::load(file.unwrap()).unwrap();
    let policy = Faulty {
        after: 4,
        calls: 0,
        n_slots: 0,
        what: Fault::Error,
    };
    let builder = small(&model).custom_policy(Box::new(policy));
    let mut session = builder.build().unwrap();
    let tokens: Vec<i32> = (0..900).map(|i| i % 100).collect();
    session.read(&tokens[..64]).unwrap();
    session.mark().unwrap();
    session.read(&tokens[64..]).unwrap_err();
    assert!(matches!(session.read(&tokens[..1]), Err(Error::Broken)));
    // The next text shares what was marked with the one that failed.
    let reused = session.reuse(&tokens[..70]).unwrap();
    session.read(&tokens[reused..70]).unwrap();
    assert_eq!(session.tokens(), &tokens[..70]);
}

#[test]
fn resident_memory_is_constant_and_everything_else_is_in_the_cold_store() {
    let model = model();
    let pool = pool_len(&model);
    let tokens = prose(&model, 3000);
    let mut session = small(&model).policy("exact").build().unwrap();
    session.read(&tokens[..100]).unwrap();
    let first = session.memory();
    assert_eq!(first.host_kv, 0);
    session.read(&tokens[100..]).unwrap();
    let last = session.memory();
    assert_eq!(first.resident_kv, last.resident_kv);
    assert!(session.resident_tokens() <= pool);
    // 4 layers, 2 KV heads of 64, K and V in f16: 2048 bytes a token. All that
    // is neither sink nor in the window is stored.
    let stored = last.host_kv / 2048;
    let window = session.resident_tokens() - 4 - 64;
    assert_eq!(stored + 4 + window, tokens.len());
}

#[test]
fn window_drops_what_leaves_it_and_uses_the_budget_as_window() {
    let model = model();
    let tokens = prose(&model, 1000);
    let mut session = small(&model).policy("window").build().unwrap();
    assert!(session.pool().window >= 128);
    session.read(&tokens).unwrap();
    assert_eq!(session.memory().host_kv, 0);
    assert_eq!(session.stats().selections, 0);
}

#[test]
fn a_sequence_can_be_cut_back_inside_the_window_and_gives_the_same_again() {
    let model = model();
    let tokens = prose(&model, 700);
    let mut session = small(&model).policy("full").ctx_size(1024).build().unwrap();
    session.read(&tokens).unwrap();
    let before = session.logits().to_vec();
    session.read_one_by_one(&prose(&model, 20)).unwrap();
    session.truncate(tokens.len() - 1).unwrap();
    session
        .read_one_by_one(&tokens[tokens.len() - 1..])
        .unwrap();
    // Another micro-batch size is another order of sums.
    let difference = before
        .iter()
        .zip(session.logits())
        .map(|(a, b)| (a - b).abs())
        .fold(0.0, f32::max);
    assert!(difference < 0.2, "{difference}");

    // A policy that drops rows cannot give them back.
    let mut session = small(&model).policy("window").build().unwrap();
    session.read(&tokens).unwrap();
    assert!(matches!(
        session.truncate(10),
        Err(Error::TruncateTooFar { to: 10, .. })
    ));
    assert_eq!(session.tokens(), tokens);
    session.truncate(tokens.len() - 30).unwrap();
    session.read(&tokens[tokens.len() - 30..]).unwrap();
    assert_eq!(session.tokens(), tokens);
}

#[test]
fn slots_hold_the_bytes_of_their_blocks_after_reading_and_generating() {
    let model = model();
    for policy in ["exact", "kiv"] {
        let mut session = small(&model).policy(policy).build().unwrap();
        session.read(&prose(&model, 1500)).unwrap();
        let options = GenerateOptions {
            max_tokens: Some(40),
            sampling: Sampling::greedy(),
            ignore_end: true,
            ..GenerateOptions::default()
        };
        assert_eq!(session.generate(options).count(), 40);
        let (compared, differing) = session.compare_slots().unwrap();
        assert!(
            compared > 0 && differing == 0,
            "{policy}: {differing} of {compared}"
        );
    }
}

#[test]
fn limits_are_told() {
    let model = model();
    let tokens = prose(&model, 600);
    let mut session = small(&model).policy("exact").ctx_size(512).build().unwrap();
    let full = session.read(&tokens).unwrap_err();
    assert!(
        matches!(
            full,
            Error::ContextFull {
                used: 0,
                more: 600,
                n_ctx: 512
            }
        ),
        "{full}"
    );
    assert!(matches!(session.read(&[]), Err(Error::NoTokens)));
    assert!(matches!(
        session.read(&[-1]),
        Err(Error::BadToken { token: -1, .. })
    ));
    assert!(matches!(
        session.read(&[2048]),
        Err(Error::BadToken {
            token: 2048,
            n_vocab: 2048
        })
    ));
    session.read(&tokens[..510]).unwrap();
    let options = GenerateOptions {
        ignore_end: true,
        max_tokens: None,
        ..GenerateOptions::default()
    };
    let mut stream = session.generate(options);
    assert_eq!(stream.by_ref().map(Result::unwrap).count(), 3);
    assert_eq!(stream.finish(), Some(Finish::ContextFull));
    // All of a context that is smaller than the pool is resident, as under `full`.
    let logits = |policy| {
        let mut session = small(&model).policy(policy).ctx_size(100).build().unwrap();
        session.read(&tokens[..100]).unwrap();
        let more = session.read(&tokens[100..101]);
        assert!(matches!(more, Err(Error::ContextFull { n_ctx: 100, .. })));
        session.logits().to_vec()
    };
    assert_eq!(logits("exact"), logits("full"));
    // What llama.cpp would not survive.
    let mut session = small(&model).build().unwrap();
    let all = session.read_with(&tokens[..9], Outputs::All, |_, _| {}, |_| {});
    assert!(matches!(all, Err(Error::OnlyLast)));
    for none in [-1, model.n_vocab() as i32] {
        assert!(model.piece(none, true).is_empty() && !model.is_end(none));
        assert!(matches!(session.read(&[none]), Err(Error::BadToken { .. })));
    }
    for (base, scale) in [(f32::NAN, 0.0), (0.0, f32::INFINITY), (-1.0, 0.0)] {
        let session = small(&model).rope(None, base, scale).build();
        assert!(matches!(session.err(), Some(Error::Rope { .. })));
    }
    let (cold, odd) = (f32::MIN_POSITIVE, f32::NAN);
    for (temperature, top_p, min_p) in [
        (odd, 1.0, 0.0),
        (f32::INFINITY, 1.0, 0.0),
        (-1.0, 1.0, 0.0),
        (1.0, odd, 0.0),
        (1.0, 1.5, 0.0),
        (0.0, 1.0, odd),
        (1.0, 1.0, -0.5),
        (cold, 1.0, 0.0),
    ] {
        let mut session = small(&model).build().unwrap();
        session.read(&tokens[..9]).unwrap();
        let best = session.logits().iter().copied().fold(f32::MIN, f32::max);
        let best = session.logits().iter().position(|l| *l == best).unwrap();
        let sampling = Sampling {
            temperature,
            top_p,
            min_p,
            ..Sampling::default()
        };
        let options = GenerateOptions {
            sampling,
            ignore_end: true,
            ..GenerateOptions::default()
        };
        match session.generate(options).next().unwrap() {
            // As cold as can be is the likeliest token, and no NaN.
            Ok(piece) => assert_eq!((piece.token as usize, temperature), (best, cold)),
            Err(error) => assert!(matches!(error, Error::Sampling { .. }), "{error}"),
        }
    }
    let unknown = small(&model).policy("best").build().err().unwrap();
    assert_eq!(
        unknown.to_string(),
        "no policy `best`: there are full, pq, window, exact, quest, arkvale, kiv"
    );
}

#[test]
fn reading_stops_at_the_next_micro_batch_when_asked() {
    let model = model();
    let tokens = prose(&model, 600);
    let mut session = small(&model).policy("exact").build().unwrap();
    let flag = session.interrupt_flag();
    let result = session.read_with(
        &tokens,
        Outputs::Last,
        |_, _| {},
        |p| {
            flag.store(p.read >= 96, Ordering::Relaxed);
        },
    );
    assert!(matches!(
        result,
        Err(Error::Interrupted {
            read: 96,
            total: 600
        })
    ));
    flag.store(false, Ordering::Relaxed);
    session.read(&tokens[96..]).unwrap();
    assert_eq!(session.tokens(), tokens);
}

#[test]
fn generation_without_anything_to_continue_is_an_error() {
    let model = model();
    let tokens = prose(&model, 300);
    let mut session = small(&model).policy("exact").build().unwrap();
    let first =
        |session: &mut Session| session.generate(GenerateOptions::default()).next().unwrap();
    assert!(matches!(first(&mut session), Err(Error::NoLogits)));
    session.read(&tokens).unwrap();
    assert!(first(&mut session).is_ok());
    session.truncate(tokens.len() - 5).unwrap();
    assert!(matches!(first(&mut session), Err(Error::NoLogits)));
    // A read that fails half-way leaves no stale logits behind.
    session.read(&tokens[tokens.len() - 5..]).unwrap();
    session.interrupt_flag().store(true, Ordering::Relaxed);
    assert!(session.read(&tokens).is_err());
    session.interrupt_flag().store(false, Ordering::Relaxed);
    assert!(
        first(&mut session).is_ok(),
        "nothing was read, so nothing is stale"
    );
}

fn greedy_text(session: &mut Session, stop: &[&str]) -> (String, Finish) {
    let options = GenerateOptions {
        max_tokens: Some(12),
        sampling: Sampling::greedy(),
        stop: stop.iter().map(|s| (*s).to_owned()).collect(),
        ..GenerateOptions::default()
    };
    let mut stream = session.generate(options);
    let mut text = String::new();
    for piece in &mut stream {
        text += &piece.unwrap().text;
    }
    text += &stream.rest();
    (text, stream.finish().unwrap())
}

/// Who goes on after an answer goes on after all of it.
#[test]
fn the_last_token_can_be_read_too() {
    let model = model();
    let tokens = prose(&model, 300);
    let mut session = small(&model).policy("exact").build().unwrap();
    session.read(&tokens).unwrap();
    let options = GenerateOptions {
        max_tokens: Some(5),
        sampling: Sampling::greedy(),
        ignore_end: true,
        ..GenerateOptions::default()
    };
    let stop = session.interrupt_flag();
    let mut stream = session.generate(options.clone());
    let mut generated: Vec<i32> = stream.by_ref().map(|p| p.unwrap().token).collect();
    // Also of one who has been asked to stop.
    stop.store(true, Ordering::Relaxed);
    stream.read_last().unwrap();
    stream.read_last().unwrap();
    stop.store(false, Ordering::Relaxed);
    assert_eq!(session.tokens(), [&tokens[..], &generated].concat());
    // It goes on as one longer answer does.
    generated.extend(session.generate(options.clone()).map(|p| p.unwrap().token));
    let mut other = small(&model).policy("exact").build().unwrap();
    other.read(&tokens).unwrap();
    let longer = GenerateOptions {
        max_tokens: Some(10),
        ..options
    };
    let whole: Vec<i32> = other.generate(longer).map(|p| p.unwrap().token).collect();
    assert_eq!(generated, whole);
}

#[test]
fn templates_are_told_other_variables() {
    let model = model();
    let said = [Message::new("user", "Hello")];
    let template = ChatTemplate::parse(
        "{% if enable_thinking is defined and not enable_thinking %}quick {% endif %}\
         {% if tools is none %}alone {% endif %}{{ messages[0].content }}",
    );
    let told = |variables: serde_json::Value| {
        let variables = variables.as_object().unwrap();
        template.apply_with(&model, &said, variables).unwrap()
    };
    assert_eq!(template.apply(&model, &said).unwrap(), "alone Hello");
    let json = |text: &str| serde_json::from_str(text).unwrap();
    assert_eq!(
        told(json(r#"{"enable_thinking": false}"#)),
        "quick alone Hello"
    );
    assert_eq!(told(json(r#"{"tools": [{}]}"#)), "Hello");
    // What the conversation is, is not for them to say.
    assert_eq!(told(json(r#"{"messages": []}"#)), "alone Hello");
}

/// Templates begin with the start token, and so does what the tokenizer makes of them.
#[test]
fn a_conversation_has_one_start_token() {
    let model = model();
    let said = [Message::new("user", "In the beginning")];
    let tokens = |template: &str| {
        let text = ChatTemplate::parse(template).apply(&model, &said).unwrap();
        model.tokenize(&text, true)
    };
    let plain = tokens("{% for m in messages %}{{ m.content }}{% endfor %}");
    let start = plain[0];
    assert_eq!(model.tokenize("", true), [start]);
    let twice = "{{ bos_token }}{% for m in messages %}{{ m.content }}{% endfor %}";
    assert_eq!(tokens(twice), plain);
    // Elsewhere it stays.
    let within = tokens("{% for m in messages %}{{ m.content }}{{ bos_token }}{% endfor %}");
    assert_eq!(within, [&plain[..], &[start]].concat());
}

#[test]
fn stop_texts_end_generation_and_are_not_part_of_it() {
    let model = model();
    let text = "The secret code of Amber Falcon is 48213.\nWhat is the secret code of Amber Falcon? \
                The secret code of Amber Falcon is";
    let tokens = model.tokenize(text, true);
    let answer = |stop: &[&str]| {
        let mut session = small(&model).policy("exact").build().unwrap();
        session.read(&tokens).unwrap();
        greedy_text(&mut session, stop)
    };
    let (all, _) = answer(&[]);
    assert!(all.starts_with(" 48213"), "{all:?}");
    assert_eq!(answer(&["213"]), (" 48".to_owned(), Finish::Stop));
    // Both are in one token: the text ends at the first of them.
    assert_eq!(model.tokenize(" secret", false).len(), 1);
    let both = answer(&["t", "c"]);
    assert_eq!(both, (" 48213. The se".to_owned(), Finish::Stop));
    // Begins to come but does not: what was held back is delivered.
    let (held, _) = answer(&["8213x"]);
    assert_eq!(held, all);
}

#[test]
fn sampling_repeats_with_its_seed() {
    let model = model();
    let tokens = prose(&model, 60);
    let text = |seed| {
        let mut session = small(&model).policy("exact").build().unwrap();
        session.read(&tokens).unwrap();
        let sampling = Sampling {
            seed,
            temperature: 1.5,
            ..Sampling::default()
        };
        let options = GenerateOptions {
            max_tokens: Some(30),
            sampling,
            ignore_end: true,
            ..GenerateOptions::default()
        };
        session
            .generate(options)
            .map(|p| p.unwrap().text)
            .collect::<String>()
    };
    assert_eq!(text(1), text(1));
    assert_ne!(text(1), text(2));
}

#[test]
fn two_sessions_of_one_model_do_not_disturb_each_other() {
    let model = model();
    let (a, b) = (prose(&model, 700), prose(&model, 900)[200..].to_vec());
    let alone = |tokens: &[i32]| {
        let mut session = small(&model).policy("exact").build().unwrap();
        session.read(tokens).unwrap();
        session.logits().to_vec()
    };
    let (want_a, want_b) = (alone(&a), alone(&b));
    let mut first = small(&model).policy("exact").build().unwrap();
    let mut second = small(&model).policy("exact").build().unwrap();
    for (x, y) in a.chunks(32).zip(b.chunks(32)) {
        first.read(x).unwrap();
        second.read(y).unwrap();
    }
    assert_eq!(first.logits(), want_a);
    assert_eq!(second.logits(), want_b);
}

#[test]
fn the_example_policy_of_the_documentation_conforms() {
    // Faulty without its fault is a policy like any other.
    let fine = || Faulty {
        after: usize::MAX,
        calls: 0,
        n_slots: 0,
        what: Fault::Error,
    };
    conformance::check(|| Box::new(fine())).unwrap();
}

/// `kiv` wants fewer blocks than there are slots: what else is in them must not
/// depend on the past either.
#[test]
fn a_session_set_back_does_not_remember_what_it_was_asked() {
    let model = model();
    let text = prose(&model, 900);
    let (context, questions) = text.split_at(800);
    for policy in ["exact", "kiv", "full"] {
        let mut session = small(&model).policy(policy).build().unwrap();
        session.read(context).unwrap();
        // Room for the longest question.
        session.read(&text[..60]).unwrap();
        let mut ask = |question: &[i32]| {
            session.rewind(context.len()).unwrap();
            assert_eq!(session.tokens().len(), context.len());
            session.read_one_by_one(question).unwrap();
            session.logits().to_vec()
        };
        let first = ask(&questions[..20]);
        let other = ask(&questions[40..100]);
        assert_ne!(first, other);
        assert_eq!(first, ask(&questions[..20]), "{policy}");
    }
}
