//! Server-sent events, read as the bytes come (WHATWG HTML, section 9.2). Lines may end in LF or CRLF; the lone CR that
//! the standard also allows is not used by any engine.

/// The largest event taken: a chunk of tokens has some hundred bytes, with log probabilities some kilobytes.
const EVENT_BYTES_MAX: usize = 1 << 20;

/// An event or a line larger than this reader keeps.
#[derive(Debug, PartialEq, thiserror::Error)]
#[error("an event of more than {EVENT_BYTES_MAX} bytes in the stream")]
pub(crate) struct TooLong;

/// Puts pieces of a stream together to the data of events.
#[derive(Debug, Default)]
pub(crate) struct Parser {
    /// A line whose end has not come yet.
    line: Vec<u8>,
    data: Vec<u8>,
    has_data: bool,
}

impl Parser {
    /// Takes more of the stream and gives the data of every event that it completes.
    pub(crate) fn push(&mut self, mut bytes: &[u8], mut event: impl FnMut(&[u8])) -> Result<(), TooLong> {
        while let Some(end) = bytes.iter().position(|byte| *byte == b'\n') {
            let (line, rest) = (&bytes[..end], &bytes[end + 1..]);
            bytes = rest;
            if self.line.is_empty() {
                self.take_line(line, &mut event)?;
            } else {
                let mut whole = std::mem::take(&mut self.line);
                whole.extend_from_slice(line);
                self.take_line(&whole, &mut event)?;
                // Give the memory back for the next broken line.
                whole.clear();
                self.line = whole;
            }
        }
        self.line.extend_from_slice(bytes);
        if self.line.len() > EVENT_BYTES_MAX {
            Err(TooLong)
        } else {
            Ok(())
        }
    }

    fn take_line(&mut self, line: &[u8], event: &mut impl FnMut(&[u8])) -> Result<(), TooLong> {
        let line = line.strip_suffix(b"\r").unwrap_or(line);
        if line.is_empty() {
            if self.has_data {
                event(&self.data);
            }
            self.data.clear();
            self.has_data = false;
            return Ok(());
        }
        // Comments (lines that start with a colon) and the fields event, id and retry carry nothing we use.
        let Some(value) = line.strip_prefix(b"data:") else {
            return Ok(());
        };
        if self.has_data {
            self.data.push(b'\n');
        }
        self.data.extend_from_slice(value.strip_prefix(b" ").unwrap_or(value));
        self.has_data = true;
        if self.data.len() > EVENT_BYTES_MAX {
            Err(TooLong)
        } else {
            Ok(())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const STREAM: &str = ": hello\n\ndata: one\n\nevent: x\r\ndata:two\r\ndata: lines\r\n\r\nid: 4\n\ndata: [DONE]\n\n";

    fn events(step: usize) -> Vec<String> {
        let mut parser = Parser::default();
        let mut events = Vec::new();
        for piece in STREAM.as_bytes().chunks(step) {
            parser
                .push(piece, |data| events.push(String::from_utf8(data.to_vec()).unwrap()))
                .unwrap();
        }
        events
    }

    #[test]
    fn pieces_of_any_size_give_the_same_events() {
        for step in 1..=STREAM.len() {
            assert_eq!(events(step), ["one", "two\nlines", "[DONE]"], "in pieces of {step}");
        }
    }

    #[test]
    fn an_endless_line_is_refused() {
        let mut parser = Parser::default();
        let piece = vec![b'x'; EVENT_BYTES_MAX / 2 + 1];
        assert_eq!(parser.push(&piece, |_| ()), Ok(()));
        assert_eq!(parser.push(&piece, |_| ()), Err(TooLong));
    }
}
