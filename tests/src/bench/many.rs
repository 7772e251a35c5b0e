//! Many containers at once: how fast they come, and whether those that come late cost more.

use std::time::{Duration, Instant};

use super::contender::Contender;
use super::sample::{Sample, milliseconds};
use super::table::Table;
use crate::Host;
use crate::api::Connection;
use crate::images::BUSYBOX;

/// How many are compared at either end.
const END: usize = 50;
/// How much more the last ones may cost before it is called growth, given that no two runs are alike.
const NOISE: f64 = 1.25;

/// Launches so many busybox containers, one after the other, keeps them running, and takes them away again.
pub fn measure(table: &mut Table, host: &Host, count: usize) {
    let duet = Contender::duet(host);
    // The usual network has addresses for some two hundred and fifty.
    duet.timed("network set duetbr0 ipv4.address=10.99.0.1/16");
    let mut times = Vec::with_capacity(count);
    let begun = Instant::now();
    for number in 0..count {
        times.push(duet.timed(&format!("launch {BUSYBOX} {}", duet.name(number))));
    }
    let took = begun.elapsed();
    let mut connection = Connection::open(&duet.socket);
    let all = connection.send("GET", "/1.0/instances?recursion=1", None).metadata();
    let running = all.as_array().into_iter().flatten().filter(|instance| instance["status"] == "Running").count();

    let title = format!("{count} busybox containers");
    table.begin(&title, &["Duet"]);
    table.bound("running at once", &running.to_string(), &format!("{count}"), running == count, "");
    #[allow(clippy::cast_precision_loss)]
    let rate = count as f64 / took.as_secs_f64();
    table.bound("launches per second, one at a time", &format!("{rate:.1}"), "20 or more", rate >= 20.0, "");
    let mean = |times: &[Duration]| {
        let mut sample = Sample::default();
        times.iter().for_each(|time| sample.add(*time));
        sample
    };
    let end = END.min(count / 2).max(1);
    let (first, last) = (mean(&times[..end]), mean(&times[count - end..]));
    table.note(&format!("first {end}, ms"), &first.to_string(), "");
    table.note(&format!("last {end}, ms"), &last.to_string(), "");
    let growth = last.median().as_secs_f64() / first.median().as_secs_f64();
    let bound = format!("{NOISE} or less");
    table.bound("last / first", &format!("{growth:.2}"), &bound, growth <= NOISE, "");
    let listed = Instant::now();
    connection.send("GET", "/1.0/instances?recursion=2", None);
    table.note("GET recursion=2 of them, ms", &milliseconds(listed.elapsed()), "");
    for number in 0..count {
        duet.change(&mut connection, "stop", number);
        duet.done(&mut connection, "DELETE", &format!("/1.0/instances/{}", duet.name(number)), None);
    }
}
