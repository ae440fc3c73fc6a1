//! What a client asks that was told of damage: whatever else happens, nobody calls such a
//! transaction committed or aborted.

use std::time::Duration;

use concord_client::Outcome;
use concord_core::id::Gtrid;
use concord_proto::v1;
use concord_proto::v1::transaction_service_client::TransactionServiceClient;

use super::Client;

/// How often it asks: at once, when its other branches may be away, and when they have ended.
const QUESTIONS: u32 = 4;
const PAUSE: Duration = Duration::from_millis(900);

impl Client {
    pub(super) async fn ask_of_damage(&self, label: &str, gtrid: Option<Gtrid>) {
        let Some(gtrid) = gtrid else {
            return;
        };
        let mut client = TransactionServiceClient::new(self.channel.clone());
        for _ in 0..QUESTIONS {
            let request = v1::GetTransactionRequest {
                gtrid: gtrid.to_string(),
                request_id: String::new(),
            };
            let told = tokio::time::timeout(PAUSE, client.get_transaction(request)).await;
            if let Ok(Ok(answer)) = told
                && let Some(transaction) = answer.into_inner().transaction
            {
                let outcome = Outcome::of(&transaction);
                self.note(label, Some(gtrid), "asks of the damage");
                if !matches!(outcome, Outcome::Unknown { .. }) {
                    let text = format!("{label} is damaged, and is told as {outcome:?}");
                    self.shared.judge.broken(Some(gtrid), text);
                }
            }
            tokio::time::sleep(PAUSE).await;
        }
    }
}
