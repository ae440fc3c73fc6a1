//! The benchmark's result: medians over slices, percentiles over all transactions.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use super::BenchArgs;
use super::load::{Side, Stats};
use crate::cli::exit::{Exit, Failure};
use crate::cli::output;

/// What the sides did, slice by slice.
#[derive(Debug, Default)]
pub(super) struct Slices {
    sides: BTreeMap<Side, (Vec<f64>, Stats)>,
    /// Orders outside the slices: they count for the books, not for the measurement.
    ordered: u64,
    perhaps: u64,
}

impl Slices {
    /// Notes what a warm-up ordered.
    pub(super) fn uncounted(&mut self, _side: Side, stats: &Stats) {
        self.ordered += stats.ordered;
        self.perhaps += stats.perhaps_ordered;
    }

    /// Adds a slice.
    pub(super) fn add(&mut self, side: Side, stats: Stats) {
        self.uncounted(side, &stats);
        match self.sides.get_mut(&side) {
            Some((tps, all)) => {
                tps.push(stats.tps());
                all.add(&stats);
            }
            None => {
                self.sides.insert(side, (vec![stats.tps()], stats));
            }
        }
    }

    /// Pieces that were ordered, and those that perhaps were.
    pub(super) fn ordered(&self) -> (i64, i64) {
        let signed = |count: u64| i64::try_from(count).unwrap_or(i64::MAX);
        (signed(self.ordered), signed(self.perhaps))
    }

    fn get(&self, side: Side) -> Option<(f64, &Stats)> {
        self.sides
            .get(&side)
            .map(|(tps, stats)| (median(tps), stats))
    }
}

/// The middle value, or the mean of the two in the middle.
fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let middle = sorted.len() / 2;
    match sorted.len() {
        0 => 0.0,
        n if n % 2 == 1 => sorted[middle],
        _ => f64::midpoint(sorted[middle - 1], sorted[middle]),
    }
}

/// The whole result.
#[derive(Debug)]
pub(super) struct Report<'a> {
    pub args: &'a BenchArgs,
    pub slices: Slices,
    pub conserved: bool,
    pub in_doubt: usize,
}

const QUANTILES: [(&str, f64); 5] = [
    ("p50", 0.5),
    ("p90", 0.9),
    ("p95", 0.95),
    ("p99", 0.99),
    ("p99_9", 0.999),
];

/// A quantile of the latencies in milliseconds.
#[allow(clippy::cast_precision_loss)] // Microseconds below 2^53.
fn millis(stats: &Stats, quantile: f64) -> f64 {
    stats.latency.value_at_quantile(quantile) as f64 / 1_000.0
}

fn side_json(tps: f64, stats: &Stats) -> Value {
    let mut latency = serde_json::Map::new();
    for (name, quantile) in QUANTILES {
        latency.insert(name.to_owned(), json!(millis(stats, quantile)));
    }
    latency.insert("max".to_owned(), json!(millis(stats, 1.0)));
    let aborted: BTreeMap<&str, u64> = stats
        .aborted
        .iter()
        .map(|(code, count)| (&**code, *count))
        .collect();
    json!({
        "tps": tps,
        "committed": stats.committed,
        "aborted": aborted,
        "unknown": stats.unknown,
        "latency_ms": latency,
    })
}

/// a/b, or null when there is no b.
fn ratio(a: f64, b: f64) -> Option<f64> {
    (b > 0.0).then(|| a / b)
}

impl Report<'_> {
    /// What `concord` means in this run: the same work as raw when there is a raw.
    fn headline(&self) -> Option<(f64, &Stats)> {
        [Side::Plain, Side::Bank, Side::Order, Side::Mixed]
            .into_iter()
            .find_map(|side| self.slices.get(side))
    }

    fn ratios(&self) -> Option<(f64, f64)> {
        let (tps, stats) = self.slices.get(Side::Plain)?;
        let (raw_tps, raw_stats) = self.slices.get(Side::Raw)?;
        Some((
            ratio(tps, raw_tps)?,
            ratio(millis(stats, 0.5), millis(raw_stats, 0.5))?,
        ))
    }

    pub(super) fn json(&self) -> Value {
        let mut value = json!({
            "workload": format!("{:?}", self.args.workload).to_lowercase(),
            "clients": self.args.clients,
            "seconds": self.args.seconds,
            "accounts": self.args.accounts,
            "hot": self.args.hot,
            "cross_server": self.args.cross_server,
            "conserved": self.conserved,
            "in_doubt": self.in_doubt,
        });
        if let Some((tps, stats)) = self.headline() {
            value["concord"] = side_json(tps, stats);
        }
        if let Some((tps, stats)) = self.slices.get(Side::Raw) {
            value["raw"] = side_json(tps, stats);
            value["rounds"] = json!(self.args.rounds);
            value["ratio"] = json!(self.ratios().map(|(ratio, _)| ratio));
            value["p50_ratio"] = json!(self.ratios().map(|(_, ratio)| ratio));
            if let Some((tps, stats)) = self.slices.get(Side::Bank) {
                value["bank"] = side_json(tps, stats);
            }
        }
        value
    }

    pub(super) fn text(&self) -> String {
        let shown = self.slices.sides.keys().filter_map(|side| {
            let (tps, stats) = self.slices.get(*side)?;
            let label = match side {
                Side::Plain => "concord, the same work as raw",
                Side::Raw => "raw XA, no log, not safe",
                Side::Bank => "concord, bank transfers",
                Side::Order => "concord, orders",
                Side::Mixed => "concord, transfers and orders",
            };
            let mut row = vec![label.to_owned(), format!("{tps:.0}")];
            for quantile in [0.5, 0.95, 0.99, 1.0] {
                row.push(format!("{:.2}", millis(stats, quantile)));
            }
            row.push(stats.committed.to_string());
            row.push(stats.aborted.values().sum::<u64>().to_string());
            row.push(stats.unknown.to_string());
            Some(row)
        });
        let header = [
            "",
            "tx/s>",
            "p50 ms>",
            "p95 ms>",
            "p99 ms>",
            "max ms>",
            "committed>",
            "aborted>",
            "unknown>",
        ];
        let mut text = output::table(&header, shown);
        for (side, (_, stats)) in &self.slices.sides {
            for (code, count) in &stats.aborted {
                let code = output::clean(code);
                output::push(
                    &mut text,
                    format_args!("\n{}: {count} × {code}", side.name()),
                );
            }
        }
        if let Some((tps, p50)) = self.ratios() {
            output::push(
                &mut text,
                format_args!(
                    "\nconcord / raw, medians over {} slices each: {tps:.3} of the throughput, \
                 {p50:.2} × the median latency",
                    self.args.rounds
                ),
            );
        }
        let books = if self.conserved {
            "they add up"
        } else {
            "THEY DO NOT ADD UP"
        };
        output::push(
            &mut text,
            format_args!("\nbooks: {books}; branches in doubt: {}", self.in_doubt),
        );
        text
    }

    /// A measurement of wrong books is no measurement.
    pub(super) fn verdict(&self) -> Result<(), Failure> {
        if !self.conserved {
            return Err(Failure::new(Exit::Other, "money or stock was made or lost")
                .why("the sums after the run are not those before it")
                .next("keep the cluster's folder and report this: it must never happen"));
        }
        if self.in_doubt > 0 {
            return Err(
                Failure::new(Exit::Other, "branches are still in doubt after a minute")
                    .next("look at `concord indoubt list` and `concord status`"),
            );
        }
        if self
            .headline()
            .is_none_or(|(_, stats)| stats.committed == 0)
        {
            return Err(Failure::new(
                Exit::Unavailable,
                "nothing was committed, so nothing was \
                                                        measured",
            )
            .next("look at `concord status`"));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_does_not_care_for_one_bad_slice() {
        assert!((median(&[1.0, 100.0, 2.0]) - 2.0).abs() < f64::EPSILON);
        assert!((median(&[1.0, 3.0]) - 2.0).abs() < f64::EPSILON);
        assert!(median(&[]).abs() < f64::EPSILON);
    }
}
