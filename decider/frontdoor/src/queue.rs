//! The bounded queue of held requests: plain data, no clocks, no wakers.

use std::collections::BTreeMap;

/// There is no room for a further request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Full;

/// Requests in their order of arrival, bounded by number and by bytes.
///
/// Keyed by order and not by position: a request whose client has gone leaves at once and frees its room, and a request
/// held again after a failed attempt takes its old place in the line.
#[derive(Debug)]
pub(crate) struct HoldQueue<T> {
    entries: BTreeMap<u64, (usize, T)>,
    bytes: usize,
    max_requests: usize,
    max_bytes: usize,
    len_max: usize,
    pushed_total: u64,
}

impl<T> HoldQueue<T> {
    pub(crate) fn new(max_requests: usize, max_bytes: usize) -> Self {
        Self {
            entries: BTreeMap::new(),
            bytes: 0,
            max_requests,
            max_bytes,
            len_max: 0,
            pushed_total: 0,
        }
    }

    /// Adds the request with this order number, which must not be in the queue.
    pub(crate) fn push(&mut self, order: u64, bytes: usize, value: T) -> Result<(), Full> {
        debug_assert!(!self.entries.contains_key(&order), "request {order} is held already");
        if self.entries.len() >= self.max_requests || bytes > self.max_bytes - self.bytes {
            return Err(Full);
        }
        self.entries.insert(order, (bytes, value));
        self.bytes += bytes;
        self.len_max = self.len_max.max(self.entries.len());
        self.pushed_total += 1;
        Ok(())
    }

    /// Takes the request that came first.
    pub(crate) fn pop(&mut self) -> Option<T> {
        let (_, (bytes, value)) = self.entries.pop_first()?;
        self.bytes -= bytes;
        Some(value)
    }

    /// Takes the request with this order number, if it is still here.
    pub(crate) fn remove(&mut self, order: u64) -> Option<T> {
        let (bytes, value) = self.entries.remove(&order)?;
        self.bytes -= bytes;
        Some(value)
    }

    pub(crate) fn clear(&mut self) {
        self.entries.clear();
        self.bytes = 0;
    }

    pub(crate) fn len(&self) -> usize {
        self.entries.len()
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    pub(crate) fn bytes(&self) -> usize {
        self.bytes
    }

    /// Most requests ever here at a time.
    pub(crate) fn len_max(&self) -> usize {
        self.len_max
    }

    /// Requests ever added.
    pub(crate) fn pushed_total(&self) -> u64 {
        self.pushed_total
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[derive(Clone, Debug)]
    enum Step {
        Push(u64, usize),
        Pop,
        Remove(u64),
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            3 => (0..40_u64, 0..60_usize).prop_map(|(order, bytes)| Step::Push(order, bytes)),
            1 => Just(Step::Pop),
            1 => (0..40_u64).prop_map(Step::Remove),
        ]
    }

    proptest! {
        /// Against a plain sorted list: same content, same order, never over a bound, refuses only at a bound.
        #[test]
        fn accounts_like_a_sorted_list(steps in prop::collection::vec(step(), 0..200), max in 0..8_usize, max_bytes in 0..200_usize) {
            let mut queue = HoldQueue::new(max, max_bytes);
            let mut model: Vec<(u64, usize)> = Vec::new();
            let mut most = 0;
            for step in steps {
                match step {
                    Step::Push(order, _) if model.iter().any(|entry| entry.0 == order) => {}
                    Step::Push(order, bytes) => {
                        let held: usize = model.iter().map(|entry| entry.1).sum();
                        let fits = model.len() < max && held + bytes <= max_bytes;
                        prop_assert_eq!(queue.push(order, bytes, order), if fits { Ok(()) } else { Err(Full) });
                        if fits {
                            model.push((order, bytes));
                            model.sort_unstable();
                        }
                    }
                    Step::Pop => {
                        let first = if model.is_empty() { None } else { Some(model.remove(0).0) };
                        prop_assert_eq!(queue.pop(), first);
                    }
                    Step::Remove(order) => {
                        let at = model.iter().position(|entry| entry.0 == order);
                        prop_assert_eq!(queue.remove(order), at.map(|at| model.remove(at).0));
                    }
                }
                most = most.max(model.len());
                prop_assert_eq!(queue.len(), model.len());
                prop_assert_eq!(queue.is_empty(), model.is_empty());
                prop_assert_eq!(queue.bytes(), model.iter().map(|entry| entry.1).sum::<usize>());
                prop_assert_eq!(queue.len_max(), most);
            }
        }
    }
}
