//! One connection that speaks the MySQL protocol, passed packet by packet.
//!
//! The protocol takes turns, so that one loop passes both directions and is never in the middle of
//! a packet when it is to cut.

use std::io;

use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::packet::{self, Answers, CLIENT_SSL, COM_QUERY, HEADER_BYTES};
use super::{Cut, Link, Point, Stream, Way, gate, pass};

/// How far the connection has come.
#[derive(Clone, Debug)]
enum Phase {
    /// The server greets; the client's answer has not come.
    Greeting,
    /// The password is being checked.
    Login,
    /// The client may send a command.
    Idle,
    /// A text is being answered.
    Answering(Answers),
}

/// What to do with a packet.
enum Step {
    Pass(Vec<u8>),
    /// Pass this much of it and end the connection.
    PassAndCut(Vec<u8>),
    /// It asks for TLS: pass it, and what follows is not ours to read.
    PassBlindly(Vec<u8>),
}

/// A connection.
pub struct Session<'a> {
    link: &'a Link,
    phase: Phase,
    capabilities: u32,
    claimed: Option<(Cut, usize)>,
}

impl Drop for Session<'_> {
    fn drop(&mut self) {
        if let Some((cut, _)) = self.claimed.take() {
            self.link.give_back(cut);
        }
    }
}

impl<'a> Session<'a> {
    pub fn new(link: &'a Link) -> Self {
        Self {
            link,
            phase: Phase::Greeting,
            capabilities: 0,
            claimed: None,
        }
    }

    /// Passes packets until one side ends, or a cut.
    pub async fn pass(
        mut self,
        mut near: Box<dyn Stream>,
        mut far: Box<dyn Stream>,
    ) -> io::Result<()> {
        let (mut requests, mut answers) = (Vec::new(), Vec::new());
        loop {
            tokio::select! {
                count = near.read_buf(&mut requests) => if count? == 0 { return Ok(()) },
                count = far.read_buf(&mut answers) => if count? == 0 { return Ok(()) },
            }
            while let Some(packet) = packet::take_packet(&mut requests) {
                gate(self.link, Way::Requests).await;
                match self.request(packet) {
                    Step::Pass(packet) => far.write_all(&packet).await?,
                    Step::PassAndCut(packet) => {
                        far.write_all(&packet).await?;
                        return far.flush().await;
                    }
                    Step::PassBlindly(packet) => {
                        far.write_all(&packet).await?;
                        far.write_all(&requests).await?;
                        return pass(near, far, self.link).await;
                    }
                }
            }
            while let Some(packet) = packet::take_packet(&mut answers) {
                gate(self.link, Way::Answers).await;
                match self.answer(packet) {
                    Step::Pass(packet) | Step::PassBlindly(packet) => {
                        near.write_all(&packet).await?;
                    }
                    Step::PassAndCut(packet) => {
                        near.write_all(&packet).await?;
                        return near.flush().await;
                    }
                }
            }
        }
    }

    fn request(&mut self, packet: Vec<u8>) -> Step {
        let payload = &packet[HEADER_BYTES..];
        match self.phase {
            Phase::Greeting => {
                let capabilities = payload.first_chunk().copied().map(u32::from_le_bytes);
                self.capabilities = capabilities.unwrap_or(0);
                // Such a request is the fixed part alone; a login with the same flag has a name.
                if self.capabilities & CLIENT_SSL != 0 && payload.len() == 32 {
                    return Step::PassBlindly(packet);
                }
                self.phase = Phase::Login;
                Step::Pass(packet)
            }
            Phase::Login => Step::Pass(packet),
            Phase::Idle | Phase::Answering(_) => self.command(packet),
        }
    }

    fn command(&mut self, packet: Vec<u8>) -> Step {
        let payload = &packet[HEADER_BYTES..];
        if payload.first() != Some(&COM_QUERY) {
            self.phase = Phase::Idle;
            return Step::Pass(packet);
        }
        let text = String::from_utf8_lossy(&payload[1..]);
        let verbs = packet::verbs(&text);
        self.phase = Phase::Answering(Answers::new(self.capabilities));
        match self.link.claim(&verbs) {
            Some((cut, _)) if cut.point == Point::BeforeRequest => {
                self.link.has_fired(cut);
                Step::PassAndCut(Vec::new())
            }
            Some((cut, _)) if cut.point == Point::AfterRequest => {
                self.link.has_fired(cut);
                Step::PassAndCut(packet)
            }
            claimed => {
                self.claimed = claimed;
                Step::Pass(packet)
            }
        }
    }

    fn answer(&mut self, mut packet: Vec<u8>) -> Step {
        let payload = &packet[HEADER_BYTES..];
        let answers = match &mut self.phase {
            Phase::Login => {
                if payload.first() == Some(&0x00) {
                    self.phase = Phase::Idle;
                }
                return Step::Pass(packet);
            }
            Phase::Greeting | Phase::Idle => return Step::Pass(packet),
            Phase::Answering(answers) => answers,
        };
        let statement = answers.statement();
        if answers.take(payload) {
            self.phase = Phase::Idle;
        }
        match self.claimed {
            Some((cut, at)) if at == statement && !self.link.is_calm() => {
                self.claimed = None;
                self.link.has_fired(cut);
                let kept = match cut.point {
                    Point::PartialAnswer => packet.len().div_ceil(2),
                    _ => 0,
                };
                packet.truncate(kept);
                Step::PassAndCut(packet)
            }
            _ => {
                if matches!(self.phase, Phase::Idle)
                    && let Some((cut, _)) = self.claimed.take()
                {
                    // The text ended before the verb; another one may come to it.
                    self.link.give_back(cut);
                }
                Step::Pass(packet)
            }
        }
    }
}
