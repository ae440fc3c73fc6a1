//! Branches in doubt on all participants, page by page.
//!
//! The cursor is the participant's index and that participant's own page token.

use concord_proto::convert::Page;
use concord_proto::convert::admin::IN_DOUBT;
use concord_proto::convert::page;
use concord_proto::v1;
use tokio::time::timeout;

use super::admin::ASK_TIMEOUT;
use crate::participants::{Participants, Peer};

/// One page.
pub async fn list(participants: &Participants, page: &Page) -> v1::ListInDoubtResponse {
    let peers = participants.all();
    let cursor = page
        .after
        .as_deref()
        .and_then(|cursor| cursor.split_once(' '));
    let (mut index, mut token) = match cursor {
        Some((index, token)) => (index.parse().unwrap_or(0), token.to_owned()),
        None => (0, String::new()),
    };
    let mut response = v1::ListInDoubtResponse::default();
    while let Some(peer) = peers.get(index) {
        let room = page.size.saturating_sub(response.branches.len());
        if room == 0 {
            response.next_page_token = page::token(IN_DOUBT, &format!("{index} {token}"));
            break;
        }
        let Some(found) = ask(peer, room, token).await else {
            response.unreachable.push(peer.name.to_string());
            token = String::new();
            index += 1;
            continue;
        };
        let branches = found.branches.into_iter().filter(is_in_doubt);
        response
            .branches
            .extend(branches.map(|branch| v1::InDoubtBranch {
                participant: peer.name.to_string(),
                branch: Some(branch),
                transaction: None,
            }));
        token = found.next_page_token;
        if token.is_empty() {
            index += 1;
        }
    }
    response
}

async fn ask(peer: &Peer, room: usize, page_token: String) -> Option<v1::ListBranchesResponse> {
    let page_size = u32::try_from(room).unwrap_or(u32::MAX);
    let request = v1::ListBranchesRequest {
        page_size,
        page_token,
    };
    let answer = timeout(ASK_TIMEOUT, peer.client().list_branches(request)).await;
    Some(answer.ok()?.ok()?.into_inner())
}

/// Whether a branch is prepared and not finished, as its participant or its server sees it.
fn is_in_doubt(branch: &v1::ParticipantBranch) -> bool {
    branch.listed_by_server
        || matches!(
            branch.state(),
            v1::BranchState::Prepared | v1::BranchState::Committing | v1::BranchState::Aborting
        )
}
