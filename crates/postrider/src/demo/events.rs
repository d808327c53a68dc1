//! Events as the services of a software company might publish them. All is a function of a number.

use serde_json::{Value, json};

const PEOPLE: [&str; 6] = [
    "Ada Novak",
    "Jun Ito",
    "Lena Vogt",
    "Sam Okoro",
    "Maria Silva",
    "Noor Haddad",
];
const COMPANIES: [&str; 5] = [
    "Birch & Co",
    "Northwind Foods",
    "Lumen Labs",
    "Harbour Print",
    "Atlas Cycles",
];
const REPOSITORIES: [&str; 4] = ["web", "billing", "mobile-app", "search"];
const CURRENCIES: [&str; 3] = ["EUR", "USD", "GBP"];
const MESSAGES: [&str; 4] = [
    "Is the invoice of last month settled?",
    "The new layout looks great, thank you!",
    "Could we move the call to Thursday?",
    "Shipping address changed, see the attachment.",
];

/// The type and data of the event of this number.
pub(crate) fn event(number: u64) -> (&'static str, Value) {
    // Neighbouring numbers shall not look alike.
    let random = number.wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(23);
    let cents = 500 + random % 250_000;
    match random % 7 {
        0 => (
            "invoice.paid",
            json!({
                "invoice": format!("INV-{:06}", number % 1_000_000),
                "customer": { "id": format!("cus_{:08x}", random >> 32), "name": pick(&COMPANIES, random) },
                "amount": { "cents": cents, "currency": pick(&CURRENCIES, random >> 8) },
            }),
        ),
        1 => (
            "invoice.overdue",
            json!({
                "invoice": format!("INV-{:06}", number % 1_000_000),
                "customer": { "name": pick(&COMPANIES, random) },
                "days_overdue": 1 + random % 30,
            }),
        ),
        2 => (
            "build.failed",
            json!({
                "repository": pick(&REPOSITORIES, random),
                "branch": "main",
                "commit": format!("{random:016x}"),
                "step": pick(&["compile", "test", "lint"], random >> 8),
                "duration_s": 20 + random % 600,
            }),
        ),
        3 => (
            "build.succeeded",
            json!({
                "repository": pick(&REPOSITORIES, random),
                "commit": format!("{random:016x}"),
                "duration_s": 20 + random % 600,
            }),
        ),
        4 => (
            "message.received",
            json!({
                "thread": format!("thr_{:06x}", random % 0xff_ffff),
                "from": { "name": pick(&PEOPLE, random) },
                "text": pick(&MESSAGES, random >> 8),
            }),
        ),
        5 => (
            "user.invited",
            json!({
                "invited_by": pick(&PEOPLE, random),
                "role": pick(&["viewer", "editor", "admin"], random >> 8),
                "seats_left": random % 20,
            }),
        ),
        _ => (
            "order.shipped",
            json!({
                "order": number,
                "carrier": pick(&["parcel", "courier", "pickup"], random),
                "items": [{ "sku": format!("SKU-{:04}", random % 10_000), "quantity": 1 + random % 4 }],
                "total": { "cents": cents, "currency": pick(&CURRENCIES, random >> 8) },
            }),
        ),
    }
}

fn pick<'a>(from: &[&'a str], random: u64) -> &'a str {
    let count = u64::try_from(from.len()).unwrap_or(1);
    let index = usize::try_from((random >> 16) % count).unwrap_or(0);
    from[index]
}
