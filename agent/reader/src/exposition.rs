//! The Prometheus text formats 0.0.4 and 1.0.0 and OpenMetrics 1.0, read as what they have in common: lines.
//!
//! Nothing is allocated and nothing is copied: a [`Sample`] borrows from the body, labels are only looked at when
//! asked for, and [`visit`] leaves a line of an unwanted family after its name. `# HELP`, `# TYPE` and
//! `# UNIT` are passed over: what a family is follows from its name, because the dialects disagree about the rest
//! (a counter is typed with and without `_total`, `_created` samples are gauges here and belong to their family there).
//!
//! **Invariant:** no input makes these functions panic, allocate or take more than linear time.

use std::borrow::Cow;

use memchr::{memchr, memrchr};

/// What a body held, besides the samples that were handed out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Summary {
    /// Samples handed to the visitor.
    pub samples: usize,
    /// Lines that are neither a sample, a comment nor empty. Lines of unwanted families are not looked at that closely.
    pub skipped_lines: usize,
    /// Number of the first such line, from 1.
    pub first_skipped_line: Option<usize>,
    /// Whether the last line ended. Both formats demand it, so that a body of which this is false was cut; its last
    /// line is never handed out, because `12` may be the beginning of `1234`. An OpenMetrics `# EOF` needs no newline.
    pub complete: bool,
    /// OpenMetrics' end mark was the last line.
    pub saw_eof: bool,
}

/// One line: `name{labels} value`. Timestamp and exemplar are checked for form and dropped.
#[derive(Debug, Clone, Copy)]
pub struct Sample<'a> {
    /// Name of the sample, suffixes such as `_total` or `_bucket` included.
    pub name: &'a [u8],
    /// Its labels, not yet looked at.
    pub labels: Labels<'a>,
    /// The value; may be NaN or infinite.
    pub value: f64,
}

/// The raw text between the braces of a sample.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Labels<'a> {
    raw: &'a [u8],
}

impl<'a> Labels<'a> {
    /// Reads `raw`, the text between the braces.
    pub fn new(raw: &'a [u8]) -> Self {
        Self { raw }
    }

    /// The text between the braces.
    pub fn raw(&self) -> &'a [u8] {
        self.raw
    }

    /// Names and values in the order in which they are written; ends at the first malformed one.
    pub fn iter(&self) -> LabelIter<'a> {
        LabelIter { rest: self.raw }
    }

    /// The value of the label `name`.
    pub fn get(&self, name: &[u8]) -> Option<LabelValue<'a>> {
        self.iter().find(|(n, _)| *n == name).map(|(_, v)| v)
    }
}

/// A label value as written, escapes included.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LabelValue<'a>(&'a [u8]);

impl<'a> LabelValue<'a> {
    /// The text between the quotes.
    pub fn raw(&self) -> &'a [u8] {
        self.0
    }

    /// The value with `\\`, `\"` and `\n` resolved; allocates only when there are any.
    pub fn unescaped(&self) -> Cow<'a, [u8]> {
        if memchr(b'\\', self.0).is_none() {
            return Cow::Borrowed(self.0);
        }
        let mut out = Vec::with_capacity(self.0.len());
        let mut bytes = self.0.iter();
        while let Some(&b) = bytes.next() {
            if b != b'\\' {
                out.push(b);
                continue;
            }
            match bytes.next() {
                Some(b'n') => out.push(b'\n'),
                Some(&c @ (b'\\' | b'"')) => out.push(c),
                // Both formats leave other escapes undefined; the Prometheus parser keeps them as they are.
                Some(&c) => out.extend_from_slice(&[b'\\', c]),
                None => out.push(b'\\'),
            }
        }
        Cow::Owned(out)
    }

    /// [`LabelValue::unescaped`] as text, invalid UTF-8 replaced.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.unescaped()).into_owned()
    }
}

/// See [`Labels::iter`].
#[derive(Debug, Clone)]
pub struct LabelIter<'a> {
    rest: &'a [u8],
}

impl<'a> Iterator for LabelIter<'a> {
    type Item = (&'a [u8], LabelValue<'a>);

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            let rest = trim_start_of(self.rest, b", \t");
            if rest.first() == Some(&b'"') {
                // The metric's own name, quoted into the braces (`{"my.metric",a="b"}`), is no label; but a quoted
                // label name is one, and both begin alike.
                let end = closing_quote(rest, 1)?;
                let after = trim_start_of(&rest[end + 1..], b" \t");
                if after.first() != Some(&b'=') {
                    self.rest = after;
                    continue;
                }
                let (value, left) = quoted(&after[1..])?;
                self.rest = left;
                return Some((&rest[1..end], value));
            }
            let equals = memchr(b'=', rest)?;
            let (value, left) = quoted(&rest[equals + 1..])?;
            self.rest = left;
            return Some((trim_end(&rest[..equals]), value));
        }
    }
}

fn quoted(text: &[u8]) -> Option<(LabelValue<'_>, &[u8])> {
    let text = trim_start_of(text, b" \t");
    if text.first() != Some(&b'"') {
        return None;
    }
    let end = closing_quote(text, 1)?;
    Some((LabelValue(&text[1..end]), &text[end + 1..]))
}

/// Index of the first unescaped quote at or after `from`.
fn closing_quote(text: &[u8], from: usize) -> Option<usize> {
    let mut at = from;
    loop {
        let quote = at + memchr(b'"', text.get(at..)?)?;
        let backslashes = text[from..quote].iter().rev().take_while(|&&b| b == b'\\').count();
        if backslashes % 2 == 0 {
            return Some(quote);
        }
        at = quote + 1;
    }
}

/// Who looks at a body, see [`visit`].
pub trait Visitor<'a> {
    /// Whether samples of this name are of interest. Asked once per run of equal names, so it may take its time; a
    /// line of a refused name costs the search for the next newline.
    fn wanted(&mut self, name: &'a [u8]) -> bool;
    /// One sample of a wanted name: of the name last asked about.
    fn sample(&mut self, sample: Sample<'a>);
}

/// Visits every sample of `body`.
pub fn for_each_sample<'a>(body: &'a [u8], on_sample: impl FnMut(Sample<'a>)) -> Summary {
    struct All<F>(F);
    impl<'a, F: FnMut(Sample<'a>)> Visitor<'a> for All<F> {
        #[inline]
        fn wanted(&mut self, _: &'a [u8]) -> bool {
            true
        }
        #[inline]
        fn sample(&mut self, sample: Sample<'a>) {
            (self.0)(sample);
        }
    }
    visit(body, &mut All(on_sample))
}

/// Hands the samples `visitor` wants to it.
pub fn visit<'a>(body: &'a [u8], visitor: &mut impl Visitor<'a>) -> Summary {
    let mut summary = Summary {
        complete: body.is_empty(),
        ..Summary::default()
    };
    let mut rest = body;
    let mut line_number = 0;
    // Series of one family stand together, so most names equal the one before them.
    let mut name: &'a [u8] = b"";
    let mut want = false;
    while !rest.is_empty() {
        line_number += 1;
        let (line, ended) = match memchr(b'\n', rest) {
            Some(newline) => {
                let line = &rest[..newline];
                rest = &rest[newline + 1..];
                (line, true)
            }
            None => (std::mem::take(&mut rest), false),
        };
        if line.first() == Some(&b'#') {
            summary.saw_eof = is_eof(line);
            summary.complete = ended || summary.saw_eof;
            continue;
        }
        summary.complete = ended;
        if !ended {
            break;
        }
        if line.len() > name.len() && line[name.len()] == b'{' && !name.is_empty() && &line[..name.len()] == name {
            if !want {
                continue;
            }
        } else {
            let Some(found) = sample_name(line) else {
                if !trim_end(line).iter().all(|b| matches!(b, b' ' | b'\t')) {
                    summary.skip(line_number);
                }
                continue;
            };
            name = found;
            want = visitor.wanted(name);
            if !want {
                continue;
            }
        }
        match sample(line, name) {
            Some(sample) => {
                summary.samples += 1;
                summary.saw_eof = false;
                visitor.sample(sample);
            }
            None => summary.skip(line_number),
        }
    }
    summary
}

impl Summary {
    #[cold]
    fn skip(&mut self, line: usize) {
        self.skipped_lines += 1;
        self.first_skipped_line.get_or_insert(line);
    }
}

fn is_eof(line: &[u8]) -> bool {
    trim_end(line) == b"# EOF"
}

/// Bytes a name may consist of: `[a-zA-Z0-9_:]`, and the dot, which some exporters forget to escape.
const NAME_BYTE: [bool; 256] = {
    let mut table = [false; 256];
    let mut b = 0;
    while b < 256 {
        let byte = b as u8;
        table[b] = byte.is_ascii_alphanumeric() || byte == b'_' || byte == b':' || byte == b'.';
        b += 1;
    }
    table
};

/// The name a line begins with; `None` when it is not a sample's line.
fn sample_name(line: &[u8]) -> Option<&[u8]> {
    let end = line.iter().position(|&b| !NAME_BYTE[usize::from(b)])?;
    let first = *line.first()?;
    match line[end] {
        b'{' | b' ' | b'\t' if end > 0 && !first.is_ascii_digit() && first != b'.' => Some(&line[..end]),
        // `{"quoted.name",label="x"} 1`
        b'{' if end == 0 && line.get(1) == Some(&b'"') => {
            let quote = closing_quote(line, 2)?;
            Some(&line[2..quote])
        }
        _ => None,
    }
}

/// Reads `line`, known to begin with `name` (plain, or quoted into the braces).
#[inline]
fn sample<'a>(line: &'a [u8], name: &'a [u8]) -> Option<Sample<'a>> {
    let open = if line[0] == b'{' { 0 } else { name.len() };
    let (labels, rest) = if line[open] == b'{' {
        let close = closing_brace(line, open)?;
        (&line[open + 1..close], &line[close + 1..])
    } else {
        let rest = trim_start_of(&line[open..], b" \t");
        if rest.first() == Some(&b'{') {
            let close = closing_brace(rest, 0)?;
            (&rest[1..close], &rest[close + 1..])
        } else {
            (&b""[..], rest)
        }
    };
    let value = value(rest)?;
    Some(Sample {
        name,
        labels: Labels { raw: labels },
        value,
    })
}

/// Index of the brace that closes the one at `open`.
#[inline]
fn closing_brace(line: &[u8], open: usize) -> Option<usize> {
    let close = open + 1 + memchr(b'}', &line[open + 1..])?;
    if close == open + 1 {
        return Some(close);
    }
    // The first brace is the right one when a quote that ends a value stands before it. That quote may be a value's
    // first character instead (`a="}"`) or an escaped one; what stands before *it* tells, and when in doubt we count.
    if line[close - 1] == b'"'
        && close >= open + 3
        && !matches!(line[close - 2], b'=' | b'\\' | b' ' | b'\t' | b',' | b'{')
    {
        return Some(close);
    }
    counted_closing_brace(line, open)
}

#[cold]
fn counted_closing_brace(line: &[u8], open: usize) -> Option<usize> {
    let mut at = open + 1;
    loop {
        match *line.get(at)? {
            b'}' => return Some(at),
            b'"' => at = closing_quote(line, at + 1)? + 1,
            _ => at += 1,
        }
    }
}

/// The value, from the text after the labels: `value [timestamp] [# exemplar]`.
#[inline]
fn value(text: &[u8]) -> Option<f64> {
    let mut start = 0;
    while matches!(text.get(start), Some(b' ' | b'\t')) {
        start += 1;
    }
    let text = &text[start..];
    if let Some((value, used)) = plain_decimal(text) {
        return match text.get(used) {
            None => Some(value),
            Some(_) => tail_is_fine(&text[used..]).then_some(value),
        };
    }
    let end = text
        .iter()
        .position(|b| matches!(b, b' ' | b'\t' | b'\r'))
        .unwrap_or(text.len());
    let value = float(&text[..end])?;
    tail_is_fine(&text[end..]).then_some(value)
}

/// Whether the rest of a line is nothing, a timestamp or an exemplar.
fn tail_is_fine(tail: &[u8]) -> bool {
    let tail = trim_end(tail);
    if tail.is_empty() {
        return true;
    }
    let trimmed = trim_start_of(tail, b" \t");
    if trimmed.len() == tail.len() {
        return false;
    }
    if trimmed.first() == Some(&b'#') {
        return true;
    }
    let end = trimmed
        .iter()
        .position(|b| matches!(b, b' ' | b'\t'))
        .unwrap_or(trimmed.len());
    let rest = trim_start_of(&trimmed[end..], b" \t");
    float(&trimmed[..end]).is_some() && (rest.is_empty() || rest[0] == b'#')
}

/// Exact powers of ten: up to 10²² every one is an f64.
const POWERS: [f64; 23] = [
    1e0, 1e1, 1e2, 1e3, 1e4, 1e5, 1e6, 1e7, 1e8, 1e9, 1e10, 1e11, 1e12, 1e13, 1e14, 1e15, 1e16, 1e17, 1e18, 1e19, 1e20,
    1e21, 1e22,
];

/// A number such as `12`, `12.0` or `0.0185` and how many bytes it took; `None` leaves it to [`float`]. At most 15
/// digits make an integer that f64 holds exactly, and dividing it by an exact power of ten rounds once: the result is
/// the correctly rounded one (Clinger, "How to read floating point numbers accurately", 1990).
#[inline]
fn plain_decimal(text: &[u8]) -> Option<(f64, usize)> {
    let mut mantissa: u64 = 0;
    let mut at = 0;
    let mut digits = 0;
    let mut point = None;
    while let Some(&b) = text.get(at) {
        let digit = b.wrapping_sub(b'0');
        if digit < 10 {
            mantissa = mantissa.wrapping_mul(10).wrapping_add(u64::from(digit));
            digits += 1;
        } else if b == b'.' && point.is_none() {
            point = Some(digits);
        } else if matches!(b, b' ' | b'\t' | b'\r') {
            break;
        } else {
            return None;
        }
        at += 1;
    }
    if digits == 0 || digits > 15 {
        return None;
    }
    let value = mantissa as f64;
    Some((point.map_or(value, |before| value / POWERS[digits - before]), at))
}

/// A number as the formats write it: decimal, `1e+06`, `NaN`, `+Inf`, `-Inf`. Correctly rounded.
pub fn float(text: &[u8]) -> Option<f64> {
    if let Some((value, used)) = plain_decimal(text) {
        return (used == text.len()).then_some(value);
    }
    std::str::from_utf8(text).ok()?.parse().ok()
}

fn trim_start_of<'a>(mut text: &'a [u8], what: &[u8]) -> &'a [u8] {
    while let [first, rest @ ..] = text {
        if !what.contains(first) {
            break;
        }
        text = rest;
    }
    text
}

/// Without trailing blanks and the `\r` of a CRLF.
fn trim_end(mut text: &[u8]) -> &[u8] {
    while let [rest @ .., b' ' | b'\t' | b'\r'] = text {
        text = rest;
    }
    text
}

/// Whether `body` ends as both formats demand, looked at from its end only.
pub fn ends_well(body: &[u8]) -> bool {
    match body.last() {
        None | Some(b'\n') => true,
        Some(_) => is_eof(&body[memrchr(b'\n', body).map_or(0, |n| n + 1)..]),
    }
}
