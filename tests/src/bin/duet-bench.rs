//! `make bench`: see `duet_tests::bench`.

use std::process::ExitCode;

use anyhow::{Context, Result, bail};
use duet_tests::bench::breakdown;
use duet_tests::bench::contender::Contender;
use duet_tests::bench::incus::Incus;
use duet_tests::bench::life::{self, Image};
use duet_tests::bench::lists;
use duet_tests::bench::many;
use duet_tests::bench::table::Table;
use duet_tests::bench::trace::Tracer;
use duet_tests::{Host, images};
use serde_json::json;

const USAGE: &str = "\
make bench [ARGS='...']

  --image busybox|debian|both  what the verbs are measured with (both)
  --rounds N                   how often each verb is (10)
  --instances N                how many instances the longest list has (1000)
  --many N                     how many containers run at once (300; 0 leaves it out)
  --alone                      Duet only, also where Incus is installed
  --only verbs|lists|many|start  one part";

const BUSYBOX: Image = Image { alias: images::BUSYBOX, title: "busybox", systemd: false, targets: false };
const DEBIAN: Image = Image { alias: images::DEBIAN_13, title: "Debian 13", systemd: true, targets: true };

struct Options {
    images: Vec<Image>,
    rounds: usize,
    instances: usize,
    many: usize,
    alone: bool,
    only: Option<String>,
}

impl Options {
    fn read(mut arguments: impl Iterator<Item = String>) -> Result<Self> {
        let mut options =
            Self { images: vec![DEBIAN, BUSYBOX], rounds: 10, instances: 1000, many: 300, alone: false, only: None };
        while let Some(argument) = arguments.next() {
            let mut value = || arguments.next().with_context(|| format!("{argument} needs a value\n\n{USAGE}"));
            match argument.as_str() {
                "--image" => {
                    options.images = match value()?.as_str() {
                        "busybox" => vec![BUSYBOX],
                        "debian" => vec![DEBIAN],
                        "both" => vec![DEBIAN, BUSYBOX],
                        other => bail!("no such image: {other}\n\n{USAGE}"),
                    };
                }
                "--rounds" => options.rounds = value()?.parse::<usize>()?.max(1),
                "--instances" => options.instances = value()?.parse()?,
                "--many" => options.many = value()?.parse()?,
                "--alone" => options.alone = true,
                "--only" => options.only = Some(value()?),
                "--help" => bail!("{USAGE}"),
                other => bail!("no such option: {other}\n\n{USAGE}"),
            }
        }
        Ok(options)
    }

    fn wants(&self, part: &str) -> bool {
        self.only.as_deref().is_none_or(|only| only == part)
    }
}

fn main() -> ExitCode {
    match Options::read(std::env::args().skip(1)).and_then(|options| bench(&options)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error:#}");
            ExitCode::FAILURE
        }
    }
}

fn bench(options: &Options) -> Result<()> {
    let mut wanted: Vec<&str> = vec![images::BUSYBOX];
    wanted.extend(options.images.iter().map(|image| image.alias).filter(|alias| *alias != images::BUSYBOX));
    let incus = peer(options, &wanted);
    let mut host = Host::bare();
    host.quiet();
    host.start_daemon();
    let empty = lists::daemon_starts(&mut host);
    for alias in &wanted {
        images::import(&host, alias);
    }
    let mut table = Table::default();
    if options.wants("verbs") {
        let mut contenders = vec![Contender::duet(&host)];
        contenders.extend(incus.iter().flat_map(|incus| [incus.on("dir"), incus.on("btrfs")]));
        for image in &options.images {
            life::measure(&mut table, &contenders, *image, options.rounds);
        }
    }
    if options.wants("lists") {
        lists::measure(&mut table, &mut host, incus.as_ref(), options.instances);
        table.note("start of duetd, no instance, ms", &empty.answered.to_string(), "");
        lists::remove(&host);
    }
    if let Some(incus) = incus {
        incus.end();
    }
    if options.wants("many") && options.many > 0 {
        many::measure(&mut table, &host, options.many);
    }
    if options.wants("start") {
        start_taken_apart(&host)?;
    }
    table.end();
    host.abandon();
    Ok(())
}

/// Incus, where it is to be had and wanted.
fn peer(options: &Options, wanted: &[&str]) -> Option<Incus> {
    if options.alone || !(options.wants("verbs") || options.wants("lists")) {
        return None;
    }
    if let Err(sentence) = Incus::installed() {
        println!("{sentence}");
        return None;
    }
    let incus = Incus::start();
    for alias in wanted {
        incus.import(&images::file(alias), alias);
    }
    Some(incus)
}

/// Traces one start among several, the one of the median length.
fn start_taken_apart(host: &Host) -> Result<()> {
    host.ok("create busybox traced");
    let mut found = Vec::new();
    for _ in 0..7 {
        let tracer = match Tracer::start(host.daemon_pid()) {
            Ok(tracer) => tracer,
            Err(error) => {
                println!("\nA start cannot be taken apart here: {error:#}");
                return Ok(());
            }
        };
        host.done("PUT", "/1.0/instances/traced/state", &json!({"action": "start"}));
        found.push(breakdown::analyse(&tracer.stop()?)?);
        host.done("PUT", "/1.0/instances/traced/state", &json!({"action": "stop", "force": true}));
    }
    found.sort_by_key(breakdown::Breakdown::total);
    println!("\n{}", found[found.len() / 2].table());
    Ok(())
}
