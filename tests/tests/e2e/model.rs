//! The lifecycle against a model: random sequences of verbs, each of which has to do what a few lines say it does.

use std::collections::BTreeMap;

use duet_tests::Host;
use proptest::collection::vec;
use proptest::prelude::*;
use serde_json::json;

/// What the model knows of an instance.
#[derive(Debug, Clone, PartialEq)]
enum Power {
    Stopped,
    Running,
    Frozen,
}

#[derive(Debug, Clone)]
struct Instance {
    power: Power,
    /// What its mark file says, and what it said in each snapshot.
    mark: u32,
    snapshots: BTreeMap<String, u32>,
}

#[derive(Debug, Clone)]
enum Verb {
    Create(usize),
    Start(usize),
    Stop(usize),
    Restart(usize),
    Pause(usize),
    Resume(usize),
    Delete(usize),
    Rename(usize, usize),
    Copy(usize, usize),
    Mark(usize, u32),
    Snapshot(usize, usize),
    Restore(usize, usize),
    DeleteSnapshot(usize, usize),
    RestartDaemon,
    KillDaemon,
}

/// Three names make every collision likely.
const NAMES: [&str; 3] = ["a", "b", "c"];

fn verbs() -> impl Strategy<Value = Verb> {
    let name = || 0..NAMES.len();
    let snapshot = || 0..2usize;
    prop_oneof![
        4 => name().prop_map(Verb::Create),
        4 => name().prop_map(Verb::Start),
        2 => name().prop_map(Verb::Stop),
        1 => name().prop_map(Verb::Restart),
        1 => name().prop_map(Verb::Pause),
        2 => name().prop_map(Verb::Resume),
        1 => name().prop_map(Verb::Delete),
        1 => (name(), name()).prop_map(|(from, to)| Verb::Rename(from, to)),
        2 => (name(), name()).prop_map(|(from, to)| Verb::Copy(from, to)),
        4 => (name(), any::<u32>()).prop_map(|(name, mark)| Verb::Mark(name, mark)),
        3 => (name(), snapshot()).prop_map(|(name, snapshot)| Verb::Snapshot(name, snapshot)),
        2 => (name(), snapshot()).prop_map(|(name, snapshot)| Verb::Restore(name, snapshot)),
        1 => (name(), snapshot()).prop_map(|(name, snapshot)| Verb::DeleteSnapshot(name, snapshot)),
        1 => Just(Verb::RestartDaemon),
        1 => Just(Verb::KillDaemon),
    ]
}

type Model = BTreeMap<&'static str, Instance>;

/// Does the verb to the model and says whether it is allowed, and as which command. `None`: nothing to run.
fn apply(model: &mut Model, verb: &Verb) -> Option<(String, bool)> {
    use Power::{Frozen, Running, Stopped};
    let power = |model: &Model, name: &str| model.get(name).map(|instance| instance.power.clone());
    let (line, allowed) = match verb {
        Verb::Create(n) => {
            let name = NAMES[*n];
            let free = !model.contains_key(name);
            if free {
                model.insert(name, Instance { power: Stopped, mark: 0, snapshots: BTreeMap::new() });
            }
            (format!("create busybox {name}"), free)
        }
        Verb::Start(n) => change(model, *n, "start {} ", &[Stopped], Running),
        Verb::Stop(n) => change(model, *n, "stop --force {}", &[Running, Frozen], Stopped),
        Verb::Restart(n) => change(model, *n, "restart --force {}", &[Running], Running),
        Verb::Pause(n) => change(model, *n, "pause {}", &[Running], Frozen),
        Verb::Resume(n) => change(model, *n, "resume {}", &[Frozen], Running),
        Verb::Delete(n) => {
            let allowed = power(model, NAMES[*n]) == Some(Stopped);
            if allowed {
                model.remove(NAMES[*n]);
            }
            (format!("delete {}", NAMES[*n]), allowed)
        }
        Verb::Rename(from, to) => {
            let (from, to) = (NAMES[*from], NAMES[*to]);
            let allowed = power(model, from) == Some(Stopped) && !model.contains_key(to);
            if allowed && let Some(instance) = model.remove(from) {
                model.insert(to, instance);
            }
            (format!("rename {from} {to}"), allowed)
        }
        Verb::Copy(from, to) => {
            let (from, to) = (NAMES[*from], NAMES[*to]);
            let source = model.get(from).cloned();
            let allowed = source.is_some() && !model.contains_key(to);
            if allowed && let Some(source) = source {
                model.insert(to, Instance { power: Stopped, ..source });
            }
            (format!("copy {from} {to}"), allowed)
        }
        Verb::Mark(n, _) => return mark(model, *n, verb),
        Verb::Snapshot(n, s) => {
            let name = format!("s{s}");
            let instance = model.get_mut(NAMES[*n]);
            let allowed = instance.is_some_and(|instance| {
                let free = !instance.snapshots.contains_key(&name);
                if free {
                    instance.snapshots.insert(name.clone(), instance.mark);
                }
                free
            });
            (format!("snapshot create {} {name}", NAMES[*n]), allowed)
        }
        Verb::Restore(n, s) => {
            let name = format!("s{s}");
            let instance = model.get_mut(NAMES[*n]);
            // A frozen instance is left out: whether it comes back frozen or running is nobody's promise.
            if instance.as_ref().is_some_and(|instance| instance.power == Frozen) {
                return None;
            }
            let allowed = instance.is_some_and(|instance| match instance.snapshots.get(&name) {
                Some(mark) => {
                    instance.mark = *mark;
                    true
                }
                None => false,
            });
            (format!("snapshot restore {} {name}", NAMES[*n]), allowed)
        }
        Verb::DeleteSnapshot(n, s) => {
            let name = format!("s{s}");
            let allowed = model.get_mut(NAMES[*n]).is_some_and(|instance| instance.snapshots.remove(&name).is_some());
            (format!("snapshot delete {} {name}", NAMES[*n]), allowed)
        }
        Verb::RestartDaemon | Verb::KillDaemon => return None,
    };
    Some((line, allowed))
}

fn change(model: &mut Model, n: usize, line: &str, from: &[Power], to: Power) -> (String, bool) {
    let line = line.trim_end().replace("{}", NAMES[n]);
    match model.get_mut(NAMES[n]) {
        Some(instance) if from.contains(&instance.power) => {
            instance.power = to;
            (line, true)
        }
        _ => (line, false),
    }
}

fn mark(model: &mut Model, n: usize, verb: &Verb) -> Option<(String, bool)> {
    let Verb::Mark(_, value) = verb else { return None };
    let instance = model.get_mut(NAMES[n]);
    let allowed = instance.is_some_and(|instance| {
        instance.mark = *value;
        true
    });
    Some((format!("file push - {}/mark", NAMES[n]), allowed))
}

/// Compares the daemon's view with the model's.
fn compare(host: &Host, model: &Model) -> Result<(), TestCaseError> {
    let listed = host.get("/1.0/instances?recursion=2");
    let mut seen: Vec<&str> = listed.as_array().into_iter().flatten().filter_map(|i| i["name"].as_str()).collect();
    seen.sort_unstable();
    let expected: Vec<&str> = model.keys().copied().collect();
    prop_assert_eq!(seen, expected);
    for instance in listed.as_array().into_iter().flatten() {
        let name = instance["name"].as_str().unwrap_or_default();
        let known = &model[name];
        let status = format!("{:?}", known.power);
        prop_assert_eq!(instance["status"].as_str(), Some(status.as_str()), "{}", name);
        let mut snapshots: Vec<String> = instance["snapshots"]
            .as_array()
            .into_iter()
            .flatten()
            .filter_map(|snapshot| snapshot["name"].as_str())
            .map(|name| name.rsplit('/').next().unwrap_or(name).to_owned())
            .collect();
        snapshots.sort();
        prop_assert_eq!(&snapshots, &known.snapshots.keys().cloned().collect::<Vec<_>>());
        let pulled = host.duet(&format!("file pull {name}/mark -")).run();
        let mark = if pulled.code() == Some(0) { pulled.text() } else { "0".to_owned() };
        prop_assert_eq!(mark, known.mark.to_string(), "{}", name);
    }
    let running = model.values().filter(|instance| instance.power != Power::Stopped).count();
    prop_assert_eq!(host.running("duet-monitor").len(), running);
    Ok(())
}

fn walk(host: &mut Host, steps: &[Verb]) -> Result<(), TestCaseError> {
    let mut model = Model::new();
    for verb in steps {
        match verb {
            Verb::RestartDaemon => host.restart_daemon(),
            Verb::KillDaemon => {
                host.kill_daemon();
                host.start_daemon();
            }
            _ => {}
        }
        if let Some((line, allowed)) = apply(&mut model, verb) {
            let mut run = host.duet(&line);
            if let Verb::Mark(_, value) = verb {
                run = run.stdin(value.to_string());
            }
            let output = run.run();
            prop_assert_eq!(output.code() == Some(0), allowed, "{:?}: {:?}", verb, output);
        }
    }
    compare(host, &model)?;
    for name in model.keys() {
        host.duet(&format!("delete --force {name}")).run().succeeded();
    }
    prop_assert_eq!(host.get("/1.0/instances"), json!([]));
    Ok(())
}

#[test]
fn the_lifecycle_follows_its_model() {
    let mut host = Host::new();
    let cases = std::env::var("PROPTEST_CASES").ok().and_then(|cases| cases.parse().ok()).unwrap_or(12);
    let config = ProptestConfig { cases, max_shrink_iters: 60, failure_persistence: None, ..ProptestConfig::default() };
    let mut runner = proptest::test_runner::TestRunner::new(config);
    // The host is one for all cases: each ends with everything deleted.
    let host = std::cell::RefCell::new(&mut host);
    runner
        .run(&vec(verbs(), 5..30), |steps| {
            let mut host = host.borrow_mut();
            let walked = walk(&mut host, &steps);
            if walked.is_err() {
                // So that the next, smaller case starts from nothing.
                for name in NAMES {
                    let _ = host.duet(&format!("delete --force {name}")).run();
                }
            }
            walked
        })
        .unwrap_or_else(|error| panic!("{error}"));
}
