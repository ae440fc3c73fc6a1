//! Audits: all of the money in one locked read.

use std::sync::atomic::Ordering;
use std::time::Duration;

use concord_proto::convert::text::parse_gtrid;
use concord_proto::v1;
use concord_proto::v1::transaction_service_client::TransactionServiceClient;
use concord_proto::v1::value::Kind;

use super::statements::read;
use super::{Client, MONEY, ROWS, results};

impl Client {
    /// All of the money at once, locked: it must be what it was.
    pub(super) async fn audit(&mut self, label: &str) {
        self.open(label, "audit", false, Vec::new());
        let count = self.shared.servers.len();
        let servers = &self.shared.servers;
        let crashes = || servers.iter().map(|server| server.crashes()).sum::<u64>();
        let before = crashes();
        let statements: Vec<_> = (0..count)
            .flat_map(|server| (0..ROWS).map(move |row| read(server, &format!("m{row}"), true)))
            .collect();
        let request = v1::ExecuteTransactionRequest {
            statements: statements.clone(),
            isolation: v1::Isolation::Serializable.into(),
            timeout_ms: 3_000,
            ..v1::ExecuteTransactionRequest::default()
        };
        let mut client = TransactionServiceClient::new(self.channel.clone());
        let time = Duration::from_secs(5);
        let Ok(Ok(response)) = tokio::time::timeout(time, client.execute(request)).await else {
            return self.note(label, None, "sees nothing");
        };
        let response = response.into_inner();
        results::check(&self.shared.judge, &statements, &response);
        let number = |value: &v1::Value| match value.kind {
            Some(Kind::Int64(number)) => i128::from(number),
            _ => 0,
        };
        let rows: Vec<_> = response
            .results
            .iter()
            .flat_map(|result| &result.result)
            .collect();
        let sum: i128 = rows.iter().flat_map(|row| &row.values).map(number).sum();
        let gtrid = parse_gtrid(&response.gtrid);
        self.note(label, gtrid, &format!("sees {sum}"));
        let whole = i128::from(MONEY) * (count * ROWS) as i128;
        // A crash takes the locks of what was only read: the README claims nothing then.
        let excused = crashes() != before
            || self.shared.judge.any_restored()
            || !self.shared.judge.by_hand().is_empty();
        if sum == whole {
            self.shared.audits.fetch_add(1, Ordering::Relaxed);
        } else if !excused {
            let text = format!("9 Conservation: a locked read saw {sum} in all, not {whole}");
            self.shared.judge.broken(gtrid, text);
        }
    }
}
