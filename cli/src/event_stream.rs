//! Server-sent events, from bytes cut anywhere.

/// Collects the `data` of events. Only what a chat stream uses: other fields are passed over.
#[derive(Debug, Default)]
pub(crate) struct EventStream {
    /// Bytes of a line that has not ended.
    line: Vec<u8>,
    /// Data lines of an event that has not ended.
    data: Vec<String>,
}

impl EventStream {
    /// Takes in bytes, and gives the events they complete.
    pub(crate) fn push(&mut self, bytes: &[u8]) -> Vec<String> {
        let mut events = Vec::new();
        for byte in bytes {
            if *byte != b'\n' {
                self.line.push(*byte);
                continue;
            }
            let line = String::from_utf8_lossy(&self.line).into_owned();
            self.line.clear();
            let line = line.strip_suffix('\r').unwrap_or(&line);
            if line.is_empty() {
                if !self.data.is_empty() {
                    events.push(std::mem::take(&mut self.data).join("\n"));
                }
            } else if let Some(data) = line.strip_prefix("data:") {
                self.data.push(data.strip_prefix(' ').unwrap_or(data).to_owned());
            }
        }
        events
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_are_the_same_however_the_bytes_are_cut() {
        let bytes =
            "data: {\"é\":1}\n\n: ping\n\ndata:a\r\ndata: b\r\n\r\ndata: [DONE]\n\n".as_bytes();
        for size in 1..=bytes.len() {
            let mut stream = EventStream::default();
            let events: Vec<String> =
                bytes.chunks(size).flat_map(|chunk| stream.push(chunk)).collect();
            assert_eq!(events, ["{\"é\":1}", "a\nb", "[DONE]"]);
        }
    }
}
