use std::collections::BTreeMap;

use proptest::prelude::*;

use super::*;
use crate::engine::profile::Profile;

fn config(max_num_seqs: u32, budget: u32, kv_tokens: u64) -> Config {
    let mut config = Config::new(Profile::load("demo-small").unwrap());
    config.max_num_seqs = max_num_seqs;
    config.max_num_batched_tokens = budget;
    config.kv_capacity_tokens = kv_tokens;
    config
}

fn request(id: RequestId, prompt_tokens: u32, output_tokens: u32) -> Request {
    Request {
        id,
        prompt_tokens,
        output_tokens,
    }
}

/// Steps to the end, one event time after the other.
fn drain(model: &mut Model) -> Vec<Event> {
    let mut events = Vec::new();
    while let Some(at_ns) = model.next_ns() {
        model.step(at_ns, &mut events);
    }
    events
}

fn finished(events: &[Event]) -> BTreeMap<RequestId, Summary> {
    events
        .iter()
        .filter_map(|e| {
            if let Event::Finished { id, summary, .. } = e {
                Some((*id, *summary))
            } else {
                None
            }
        })
        .collect()
}

#[test]
fn one_request_takes_one_prefill_and_then_decodes() {
    let mut model = Model::new(config(4, 1024, 4096));
    model.submit(1_000, request(7, 100, 3)).unwrap();
    let events = drain(&mut model);
    let profile = &model.config().profile;
    let prefill_ms = profile.iteration_ms(&Batch {
        prefill_tokens: 100,
        prefill_context_product: 5_000.0,
        ..Batch::default()
    });
    let decode_ms = |kv| {
        profile.iteration_ms(&Batch {
            decode_seqs: 1,
            decode_kv_tokens: kv,
            ..Batch::default()
        })
    };
    let summary = finished(&events)[&7];
    assert_eq!((summary.queued_ns, summary.scheduled_ns), (1_000, 1_000));
    assert_eq!(summary.first_token_ns, 1_000 + (prefill_ms * 1e6) as u64);
    let decode_ns = (decode_ms(100) * 1e6) as u64 + (decode_ms(101) * 1e6) as u64;
    assert_eq!(summary.last_token_ns, summary.first_token_ns + decode_ns);
    assert_eq!(model.used_blocks(), 0);
}

#[test]
fn speed_divides_every_time() {
    let time = |speed| {
        let mut config = config(4, 1024, 4096);
        config.speed = speed;
        let mut model = Model::new(config);
        model.submit(0, request(1, 500, 20)).unwrap();
        finished(&drain(&mut model))[&1].last_token_ns as f64
    };
    assert!((time(1.0) / time(10.0) - 10.0).abs() < 1e-3);
}

#[test]
fn long_prompts_are_chunked_and_share_the_budget_with_decodes() {
    let mut model = Model::new(config(4, 64, 4096));
    model.submit(0, request(1, 10, 50)).unwrap();
    model.submit(0, request(2, 200, 1)).unwrap();
    let events = drain(&mut model);
    let batches: Vec<_> = events
        .iter()
        .filter_map(|e| {
            if let Event::Iteration { batch, .. } = e {
                Some((batch.prefill_tokens, batch.decode_seqs))
            } else {
                None
            }
        })
        .collect();
    // 54 beside the first prompt, then 63 beside one decode each, then what is left.
    assert_eq!(&batches[..4], &[(64, 0), (63, 1), (63, 1), (20, 1)]);
}

#[test]
fn the_youngest_is_preempted_and_recomputed() {
    // Two requests of 2 blocks grow to 3 each in a cache of 5: one has to go.
    let mut model = Model::new(config(4, 1024, 80));
    model.submit(0, request(1, 20, 20)).unwrap();
    model.submit(0, request(2, 20, 20)).unwrap();
    let events = drain(&mut model);
    let done = finished(&events);
    assert_eq!(done[&1].preemptions, 0);
    assert!(done[&2].preemptions >= 1);
    assert!(done[&1].last_token_ns < done[&2].last_token_ns);
    let tokens = events
        .iter()
        .filter(|e| matches!(e, Event::Token { id: 2, .. }))
        .count();
    assert_eq!(tokens, 20, "a recomputed request hands out each token once");
}

#[test]
fn what_can_never_fit_is_refused() {
    let mut model = Model::new(config(4, 1024, 64));
    assert_eq!(
        model.submit(0, request(1, 60, 5)),
        Err(Error::TooLong {
            prompt_tokens: 60,
            output_tokens: 5,
            limit_tokens: 64
        })
    );
    assert_eq!(model.submit(0, request(1, 0, 5)), Err(Error::Empty));
    assert_eq!(model.next_ns(), None);
}

#[test]
fn an_aborted_request_gives_its_blocks_back_and_is_heard_of_no_more() {
    let mut model = Model::new(config(1, 1024, 4096));
    for id in 1..=3 {
        model.submit(0, request(id, 100, 10)).unwrap();
    }
    let mut events = Vec::new();
    model.step(1, &mut events);
    assert_eq!((model.running(), model.waiting()), (1, 2));
    assert!(model.abort(1) && model.abort(2) && !model.abort(2));
    assert_eq!(model.used_blocks(), 0);
    let events = drain(&mut model);
    assert!(events.iter().all(|e| !matches!(e, Event::Token { id: 1 | 2, .. })));
    assert_eq!(finished(&events).len(), 1);
}

#[test]
fn prefix_hits_skip_computation_in_whole_blocks() {
    let mut config = config(4, 1024, 4096);
    config.prefix_hit_share = 0.5;
    let mut model = Model::new(config);
    model.submit(0, request(1, 100, 1)).unwrap();
    model.submit(0, request(2, 16, 1)).unwrap();
    let done = finished(&drain(&mut model));
    assert_eq!((done[&1].cached_tokens, done[&2].cached_tokens), (48, 0));
}

#[test]
fn a_stall_holds_everything_and_a_pause_does_not_count() {
    let mut model = Model::new(config(4, 1024, 4096));
    model.submit(0, request(1, 10, 2)).unwrap();
    model.step(0, &mut Vec::new());
    model.stall_until(1_000_000_000);
    assert_eq!(model.next_ns(), Some(1_000_000_000));
    let mut events = Vec::new();
    model.step(1_000_000_000, &mut events);
    assert!(matches!(
        events[0],
        Event::Token {
            at_ns: 1_000_000_000,
            ..
        }
    ));
    model.set_paused(1_000_000_000, true);
    assert_eq!(model.next_ns(), None);
    model.set_paused(9_000_000_000, false);
    assert!(finished(&drain(&mut model))[&1].last_token_ns >= 9_000_000_000);
}

#[derive(Debug, Clone)]
struct Arrival {
    gap_ns: u64,
    prompt_tokens: u32,
    output_tokens: u32,
    abort: bool,
}

fn arrivals() -> impl Strategy<Value = Vec<Arrival>> {
    prop::collection::vec(
        (0u64..60_000_000, 1u32..200, 1u32..40, prop::bool::weighted(0.1)).prop_map(
            |(gap_ns, prompt_tokens, output_tokens, abort)| Arrival {
                gap_ns,
                prompt_tokens,
                output_tokens,
                abort,
            },
        ),
        1..40,
    )
}

fn configs() -> impl Strategy<Value = Config> {
    (
        1u32..8,
        8u32..300,
        256u64..2_000,
        0.0f64..0.9,
        0.0f64..0.3,
        any::<u64>(),
    )
        .prop_map(|(seqs, budget, kv, prefix_hit_share, jitter_share, seed)| Config {
            prefix_hit_share,
            jitter_share,
            seed,
            ..config(seqs, budget, kv)
        })
}

/// Plays the arrivals as a driver would, checking what must hold at every moment.
fn play(config: &Config, arrivals: &[Arrival]) -> (Model, Vec<Event>, Vec<RequestId>) {
    let mut model = Model::new(config.clone());
    let mut events = Vec::new();
    let mut aborted = Vec::new();
    let mut now_ns = 0;
    for (id, arrival) in (0..).zip(arrivals) {
        now_ns += arrival.gap_ns;
        while let Some(at_ns) = model.next_ns()
            && at_ns <= now_ns
        {
            model.step(at_ns, &mut events);
            check_now(&model);
        }
        model
            .submit(now_ns, request(id, arrival.prompt_tokens, arrival.output_tokens))
            .unwrap();
        // Abort the one before: it may be waiting, running or done.
        if arrival.abort && id > 0 && model.abort(id - 1) {
            aborted.push(id - 1);
        }
        check_now(&model);
    }
    while let Some(at_ns) = model.next_ns() {
        model.step(at_ns, &mut events);
        check_now(&model);
    }
    (model, events, aborted)
}

fn check_now(model: &Model) {
    assert!(model.used_blocks() <= model.capacity_blocks());
    let held: u64 = model.running.iter().map(|s| s.blocks).sum();
    assert_eq!(
        held,
        model.used_blocks(),
        "blocks are held by running sequences and by nobody else"
    );
    assert!(model.running() <= model.config.max_num_seqs as usize);
    let scheduled: u32 = model.running.iter().map(|s| s.in_flight_tokens).sum();
    assert!(scheduled <= model.config.max_num_batched_tokens);
    for sequence in &model.running {
        let needed = model.blocks_for(sequence.computed_tokens + sequence.in_flight_tokens);
        assert_eq!(sequence.blocks, needed);
    }
    // The batch followed by the queue is always in order of submission: nobody overtakes.
    let order: Vec<_> = model.running_ids().chain(model.waiting_ids()).collect();
    assert!(order.is_sorted(), "{order:?}");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn every_request_finishes_exactly_once_with_all_its_tokens(config in configs(), arrivals in arrivals()) {
        let (model, events, aborted) = play(&config, &arrivals);
        prop_assert_eq!((model.running(), model.waiting(), model.used_blocks()), (0, 0, 0));
        let mut tokens: BTreeMap<RequestId, u32> = BTreeMap::new();
        let mut ends: BTreeMap<RequestId, u32> = BTreeMap::new();
        for event in &events {
            match event {
                Event::Token { id, index, gap_ns, .. } => {
                    let seen = tokens.entry(*id).or_default();
                    *seen += 1;
                    prop_assert_eq!(*index, *seen);
                    prop_assert_eq!(gap_ns.is_none(), *index == 1);
                }
                Event::Finished { id, summary, .. } => {
                    *ends.entry(*id).or_default() += 1;
                    prop_assert!(summary.queued_ns <= summary.scheduled_ns);
                    prop_assert!(summary.scheduled_ns < summary.first_token_ns);
                    prop_assert!(summary.first_token_ns <= summary.last_token_ns);
                }
                _ => {}
            }
        }
        for (id, arrival) in (0..).zip(&arrivals) {
            if aborted.contains(&id) {
                prop_assert_eq!(ends.get(&id), None);
            } else {
                prop_assert_eq!(ends.get(&id), Some(&1));
                prop_assert_eq!(tokens.get(&id), Some(&arrival.output_tokens));
            }
        }
    }

    #[test]
    fn time_never_runs_backwards_and_iterations_do_not_overlap(config in configs(), arrivals in arrivals()) {
        let (_, events, _) = play(&config, &arrivals);
        prop_assert!(events.iter().map(Event::at_ns).is_sorted());
        let mut last_end_ns = 0;
        for event in &events {
            if let Event::Iteration { start_ns, end_ns, .. } = event {
                prop_assert!(*start_ns >= last_end_ns && end_ns > start_ns);
                last_end_ns = *end_ns;
            }
        }
    }

    #[test]
    fn iterations_account_for_every_token(config in configs(), arrivals in arrivals()) {
        let (_, events, aborted) = play(&config, &arrivals);
        let mut emitted = 0u64;
        let mut tokens = 0u64;
        for event in &events {
            match event {
                Event::Iteration { batch, emitted_tokens, .. } => {
                    emitted += u64::from(*emitted_tokens);
                    prop_assert!(batch.prefill_tokens + batch.decode_seqs <= config.max_num_batched_tokens);
                }
                Event::Token { .. } => tokens += 1,
                _ => {}
            }
        }
        prop_assert_eq!(emitted, tokens);
        // Without preemptions and aborts each uncached prompt token is computed once.
        let preempted = events.iter().any(|e| matches!(e, Event::Preempted { .. }));
        if !preempted && aborted.is_empty() {
            let done = finished(&events);
            let wanted: u64 = done.values().map(|s| u64::from(s.prompt_tokens - s.cached_tokens)).sum();
            let computed: u64 = events
                .iter()
                .map(|e| if let Event::Iteration { batch, .. } = e { u64::from(batch.prefill_tokens) } else { 0 })
                .sum();
            prop_assert_eq!(wanted, computed);
        }
    }

    #[test]
    fn first_admission_is_in_order_of_submission(config in configs(), arrivals in arrivals()) {
        let (_, events, _) = play(&config, &arrivals);
        let admitted: Vec<_> = events
            .iter()
            .filter_map(|e| if let Event::Scheduled { id, first: true, .. } = e { Some(*id) } else { None })
            .collect();
        prop_assert!(admitted.is_sorted());
    }

    #[test]
    fn same_seed_same_life_and_coarse_steps_change_nothing(config in configs(), arrivals in arrivals()) {
        let (_, fine, aborted) = play(&config, &arrivals);
        prop_assert_eq!(&play(&config, &arrivals).1, &fine);
        if aborted.is_empty() {
            let mut model = Model::new(config.clone());
            let mut events = Vec::new();
            let mut now_ns = 0;
            for (id, arrival) in (0..).zip(&arrivals) {
                now_ns += arrival.gap_ns;
                model.step(now_ns, &mut events);
                model.submit(now_ns, request(id, arrival.prompt_tokens, arrival.output_tokens)).unwrap();
            }
            model.step(u64::MAX, &mut events);
            prop_assert_eq!(events, fine);
        }
    }
}
