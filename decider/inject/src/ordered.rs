//! JSON values that know the order of their fields, so that a rewritten document looks like the one it was.

use std::fmt;

use serde::de::{Deserialize, Deserializer, Error as _, MapAccess, SeqAccess, Visitor};
use serde::ser::{Serialize, SerializeMap, Serializer};
use serde_json::{Number, Value};

/// A value with the fields of its objects in the order they were written.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Ordered {
    /// Anything without fields or elements.
    Scalar(Value),
    List(Vec<Ordered>),
    Map(Vec<(String, Ordered)>),
}

impl Ordered {
    /// Without the order.
    pub(crate) fn to_value(&self) -> Value {
        match self {
            Ordered::Scalar(value) => value.clone(),
            Ordered::List(items) => items.iter().map(Ordered::to_value).collect(),
            Ordered::Map(fields) => fields
                .iter()
                .map(|(key, value)| (key.clone(), value.to_value()))
                .collect(),
        }
    }

    /// `value` in the order of `like`, with new fields behind; elements of lists are matched by their names.
    pub(crate) fn arranged(value: &Value, like: Option<&Ordered>) -> Ordered {
        match value {
            Value::Object(fields) => {
                let known = match like {
                    Some(Ordered::Map(known)) => known.as_slice(),
                    _ => &[],
                };
                let mut arranged: Vec<(String, Ordered)> = known
                    .iter()
                    .filter_map(|(key, like)| {
                        let value = fields.get(key)?;
                        Some((key.clone(), Ordered::arranged(value, Some(like))))
                    })
                    .collect();
                let mut new: Vec<_> = fields
                    .iter()
                    .filter(|(key, _)| !known.iter().any(|(k, _)| k == *key))
                    .collect();
                // People look for the name first.
                new.sort_by_key(|(key, _)| key.as_str() != "name");
                let new = new
                    .into_iter()
                    .map(|(key, value)| (key.clone(), Ordered::arranged(value, None)));
                arranged.extend(new);
                Ordered::Map(arranged)
            }
            Value::Array(items) => {
                let known = match like {
                    Some(Ordered::List(known)) => known.as_slice(),
                    _ => &[],
                };
                let arrange = |(index, item): (usize, &Value)| {
                    let named = item["name"]
                        .as_str()
                        .and_then(|name| known.iter().find(|k| k.name() == Some(name)));
                    Ordered::arranged(item, named.or_else(|| known.get(index)))
                };
                Ordered::List(items.iter().enumerate().map(arrange).collect())
            }
            scalar => Ordered::Scalar(scalar.clone()),
        }
    }

    fn name(&self) -> Option<&str> {
        match self {
            Ordered::Map(fields) => fields.iter().find_map(|(key, value)| match value {
                Ordered::Scalar(Value::String(name)) if key == "name" => Some(name.as_str()),
                _ => None,
            }),
            _ => None,
        }
    }
}

impl Serialize for Ordered {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Ordered::Scalar(value) => value.serialize(serializer),
            Ordered::List(items) => items.serialize(serializer),
            Ordered::Map(fields) => {
                let mut map = serializer.serialize_map(Some(fields.len()))?;
                for (key, value) in fields {
                    map.serialize_entry(key, value)?;
                }
                map.end()
            }
        }
    }
}

impl<'de> Deserialize<'de> for Ordered {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(OrderedVisitor)
    }
}

struct OrderedVisitor;

impl<'de> Visitor<'de> for OrderedVisitor {
    type Value = Ordered;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a value")
    }

    fn visit_unit<E>(self) -> Result<Ordered, E> {
        Ok(Ordered::Scalar(Value::Null))
    }

    fn visit_none<E>(self) -> Result<Ordered, E> {
        Ok(Ordered::Scalar(Value::Null))
    }

    fn visit_some<D: Deserializer<'de>>(self, deserializer: D) -> Result<Ordered, D::Error> {
        Ordered::deserialize(deserializer)
    }

    fn visit_bool<E>(self, value: bool) -> Result<Ordered, E> {
        Ok(Ordered::Scalar(value.into()))
    }

    fn visit_i64<E>(self, value: i64) -> Result<Ordered, E> {
        Ok(Ordered::Scalar(value.into()))
    }

    fn visit_u64<E>(self, value: u64) -> Result<Ordered, E> {
        Ok(Ordered::Scalar(value.into()))
    }

    fn visit_f64<E: serde::de::Error>(self, value: f64) -> Result<Ordered, E> {
        let number = Number::from_f64(value).ok_or_else(|| E::custom("a number that is not finite"))?;
        Ok(Ordered::Scalar(Value::Number(number)))
    }

    fn visit_str<E>(self, value: &str) -> Result<Ordered, E> {
        Ok(Ordered::Scalar(value.into()))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Ordered, A::Error> {
        let mut list = Vec::new();
        while let Some(item) = items.next_element()? {
            list.push(item);
        }
        Ok(Ordered::List(list))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<Ordered, A::Error> {
        let mut map: Vec<(String, Ordered)> = Vec::new();
        while let Some((key, value)) = entries.next_entry::<String, Ordered>()? {
            if map.iter().any(|(known, _)| *known == key) {
                return Err(A::Error::custom(format!("the key {key:?} is there twice")));
            }
            map.push((key, value));
        }
        Ok(Ordered::Map(map))
    }
}
