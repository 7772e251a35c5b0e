//! The table that `make bench` prints: a row per thing measured, a column per contender, and beside a peer's figure how
//! many times as fast Duet is and whether that is what it is meant to be.

use super::sample::Sample;

/// What a row's figures are to show.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Shape {
    /// Median, least and most.
    Spread,
    /// Median and 99th percentile.
    Tail,
}

/// How many times as fast as a peer on `dir`, and as one on `btrfs`, Duet is meant to be.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Target {
    /// Against the pool that copies whole images.
    pub dir: Option<f64>,
    /// Against the pool that clones them.
    pub btrfs: Option<f64>,
}

impl Target {
    /// None.
    pub const NONE: Self = Self { dir: None, btrfs: None };

    /// The same against both.
    pub const fn both(times: f64) -> Self {
        Self { dir: Some(times), btrfs: Some(times) }
    }

    /// The one against a contender of this title.
    fn against(self, title: &str) -> Option<f64> {
        if title.ends_with("btrfs") { self.btrfs } else { self.dir }
    }
}

/// Prints rows as they are measured and remembers which targets were met.
#[derive(Debug, Default)]
pub struct Table {
    titles: Vec<String>,
    met: usize,
    missed: Vec<String>,
}

const WHAT: usize = 38;
const FIGURE: usize = 22;
const RATIO: usize = 18;

impl Table {
    /// Begins a part of the table with its own columns; the first is Duet's.
    pub fn begin(&mut self, title: &str, columns: &[&str]) {
        self.titles = columns.iter().map(|title| (*title).to_owned()).collect();
        println!("\n{}", header(title, columns));
    }

    /// Prints one row of samples, in the columns' order; a peer that was not asked has `None`.
    pub fn row(&mut self, what: &str, shape: Shape, samples: &[Option<Sample>], target: Target) {
        let Some(Some(own)) = samples.first() else { return };
        let mut line = format!("{what:<WHAT$} {:>4}", own.count());
        let titles = self.titles.clone();
        for (index, (title, sample)) in titles.iter().zip(samples).enumerate() {
            let figure = sample.as_ref().map_or_else(|| "-".to_owned(), |sample| figure(sample, shape));
            line.push_str(&format!(" {figure:>FIGURE$}"));
            if index == 0 {
                continue;
            }
            let times = sample.as_ref().map(|sample| ratio(sample, own));
            let wanted = target.against(title);
            line.push_str(&format!("  {:<RATIO$}", verdict(times, wanted)));
            if let (Some(times), Some(wanted)) = (times, wanted) {
                self.count(times >= wanted, || format!("{what}: {times:.1}x against {title}, {wanted}x is the target"));
            }
        }
        println!("{}", line.trim_end());
    }

    /// Prints a figure of Duet's own that is to stay below, or reach, a bound; `beside` is what a peer has there.
    pub fn bound(&mut self, what: &str, figure: &str, bound: &str, met: bool, beside: &str) {
        let verdict = if met { "met" } else { "MISSED" };
        let line = format!("{what:<WHAT$}      {figure:>FIGURE$}  {:<26} {beside}", format!("{bound}: {verdict}"));
        println!("{}", line.trim_end());
        self.count(met, || format!("{what}: {figure}, {bound} is the target"));
    }

    /// Prints a figure for which there is no target.
    pub fn note(&self, what: &str, figure: &str, beside: &str) {
        println!("{}", format!("{what:<WHAT$}      {figure:>FIGURE$}  {:<26} {beside}", "").trim_end());
    }

    fn count(&mut self, met: bool, what: impl FnOnce() -> String) {
        if met {
            self.met += 1;
        } else {
            self.missed.push(what());
        }
    }

    /// Says which targets were missed.
    pub fn end(&self) {
        if self.met + self.missed.len() == 0 {
            return;
        }
        println!("\n{} targets met, {} missed", self.met, self.missed.len());
        for missed in &self.missed {
            println!("  {missed}");
        }
    }
}

fn header(title: &str, columns: &[&str]) -> String {
    let mut line = format!("{title:<WHAT$} {:>4}", "n");
    for (index, column) in columns.iter().enumerate() {
        line.push_str(&format!(" {column:>FIGURE$}"));
        if index > 0 {
            line.push_str(&format!("  {:<RATIO$}", "Duet is"));
        }
    }
    line.trim_end().to_owned()
}

fn figure(sample: &Sample, shape: Shape) -> String {
    match shape {
        Shape::Spread => sample.to_string(),
        Shape::Tail => sample.tail(),
    }
}

fn ratio(peer: &Sample, own: &Sample) -> f64 {
    peer.median().as_secs_f64() / own.median().as_secs_f64().max(f64::MIN_POSITIVE)
}

fn verdict(times: Option<f64>, wanted: Option<f64>) -> String {
    let Some(times) = times else { return String::new() };
    match wanted {
        Some(wanted) if times >= wanted => format!("{times:.1}x, {wanted}x met"),
        Some(wanted) => format!("{times:.1}x, {wanted}x MISSED"),
        None => format!("{times:.1}x"),
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn of(milliseconds: u64) -> Sample {
        let mut sample = Sample::default();
        sample.add(Duration::from_millis(milliseconds));
        sample
    }

    #[test]
    fn targets_are_counted_against_their_own_peer() {
        let mut table = Table::default();
        table.begin("a part", &["Duet", "Incus dir", "Incus btrfs"]);
        let target = Target { dir: Some(20.0), btrfs: Some(10.0) };
        table.row("launch", Shape::Spread, &[Some(of(10)), Some(of(210)), Some(of(90))], target);
        table.row("copy", Shape::Spread, &[Some(of(10)), None, Some(of(90))], Target::NONE);
        table.bound("resident", "20.0 MB", "under 15 MB", false, "");
        assert_eq!(table.met, 1);
        assert_eq!(
            table.missed,
            ["launch: 9.0x against Incus btrfs, 10x is the target", "resident: 20.0 MB, under 15 MB is the target"]
        );
    }

    #[test]
    fn verdicts_say_what_was_wanted() {
        assert_eq!(verdict(Some(21.0), Some(20.0)), "21.0x, 20x met");
        assert_eq!(verdict(Some(19.94), Some(20.0)), "19.9x, 20x MISSED");
        assert_eq!(verdict(Some(3.0), None), "3.0x");
        assert_eq!(verdict(None, Some(3.0)), "");
    }
}
