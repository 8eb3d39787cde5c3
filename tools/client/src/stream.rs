//! Server-sent events, as far as the gateway uses them: one `event` and one `data` line each.

use futures::stream::{self, BoxStream, StreamExt as _};
use reqwest::Response;
use serde_json::Value;

/// An event of a live stream.
#[derive(Clone, Debug, PartialEq)]
pub struct StreamEvent {
    /// The type of the order's event, or `end`.
    pub event: String,
    pub data: Value,
}

pub(crate) fn events(response: Response) -> BoxStream<'static, anyhow::Result<StreamEvent>> {
    // Bytes, because a chunk may end within a character.
    let state = (response, Vec::new());
    stream::try_unfold(state, async |(mut response, mut received)| {
        loop {
            while let Some(block) = take_block(&mut received) {
                if let Some(event) = parse(&block) {
                    return Ok(Some((event, (response, received))));
                }
            }
            match response.chunk().await? {
                Some(chunk) => received.extend_from_slice(&chunk),
                None => return Ok(None),
            }
        }
    })
    .boxed()
}

/// Removes the first complete block: everything up to an empty line.
fn take_block(received: &mut Vec<u8>) -> Option<String> {
    let end = received.windows(2).position(|pair| pair == b"\n\n")?;
    let block: Vec<u8> = received.drain(..end + 2).collect();
    Some(String::from_utf8_lossy(&block).into_owned())
}

/// `None` for a comment, which only keeps the connection open.
fn parse(block: &str) -> Option<StreamEvent> {
    let field = |name: &str| {
        block
            .lines()
            .find_map(|line| line.strip_prefix(name)?.strip_prefix(": "))
    };
    Some(StreamEvent {
        event: field("event")?.to_owned(),
        data: serde_json::from_str(field("data")?).ok()?,
    })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_block_is_taken_when_its_empty_line_has_arrived() {
        let mut received = b"event: end\ndata: {}\n".to_vec();
        assert_eq!(take_block(&mut received), None);
        received.extend_from_slice(b"\n: keep");
        let block = take_block(&mut received);
        assert_eq!(block.as_deref(), Some("event: end\ndata: {}\n\n"));
        assert_eq!(received, b": keep");
    }

    #[test]
    fn an_event_is_parsed_and_a_comment_is_skipped() {
        assert_eq!(parse(": keep-alive"), None);
        let event = StreamEvent {
            event: "end".to_owned(),
            data: json!({ "status": "confirmed" }),
        };
        let block = "event: end\ndata: {\"status\":\"confirmed\"}";
        assert_eq!(parse(block), Some(event));
    }
}
