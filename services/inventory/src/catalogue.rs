//! The seed catalogue: 1,000 products, the same in every installation.

use std::iter::zip;

#[derive(Debug, PartialEq, Eq)]
pub struct Seed {
    pub sku: String,
    pub name: String,
    pub category: &'static str,
    /// Minor units of [`CURRENCY`].
    pub price: i64,
}

/// All prices are in this currency.
pub const CURRENCY: &str = "EUR";

/// Category, cheapest price in minor units, things.
const CATEGORIES: [(&str, i64, [&str; 10]); 10] = [
    (
        "kitchen",
        790,
        [
            "Kettle",
            "Saucepan",
            "Chef's Knife",
            "Cutting Board",
            "Teapot",
            "Whisk",
            "Mug",
            "Grinder",
            "Scale",
            "Skillet",
        ],
    ),
    (
        "office",
        290,
        [
            "Notebook",
            "Fountain Pen",
            "Desk Lamp",
            "Stapler",
            "Organizer",
            "Calendar",
            "Letter Tray",
            "Ruler",
            "Whiteboard",
            "Desk Mat",
        ],
    ),
    (
        "garden",
        590,
        [
            "Trowel",
            "Watering Can",
            "Planter",
            "Pruning Shears",
            "Rake",
            "Bird Feeder",
            "Hose Reel",
            "Lantern",
            "Bench",
            "Wheelbarrow",
        ],
    ),
    (
        "sports",
        990,
        [
            "Yoga Mat",
            "Water Bottle",
            "Jump Rope",
            "Dumbbell",
            "Backpack",
            "Headlamp",
            "Tennis Racket",
            "Football",
            "Cycling Gloves",
            "Towel",
        ],
    ),
    (
        "electronics",
        1490,
        [
            "Headphones",
            "Power Bank",
            "Keyboard",
            "Mouse",
            "Webcam",
            "Speaker",
            "Charger",
            "Monitor Arm",
            "USB Hub",
            "Microphone",
        ],
    ),
    (
        "books",
        890,
        [
            "Atlas",
            "Cookbook",
            "Field Guide",
            "Novel",
            "Biography",
            "Anthology",
            "Dictionary",
            "Sketchbook",
            "Travel Guide",
            "Poetry Collection",
        ],
    ),
    (
        "toys",
        690,
        [
            "Building Blocks",
            "Puzzle",
            "Kite",
            "Train Set",
            "Board Game",
            "Yo-Yo",
            "Marble Run",
            "Spinning Top",
            "Doll House",
            "Card Game",
        ],
    ),
    (
        "clothing",
        1290,
        [
            "T-Shirt",
            "Scarf",
            "Rain Jacket",
            "Wool Socks",
            "Beanie",
            "Belt",
            "Cardigan",
            "Gloves",
            "Trousers",
            "Apron",
        ],
    ),
    (
        "home",
        990,
        [
            "Cushion",
            "Wall Clock",
            "Candle",
            "Blanket",
            "Vase",
            "Picture Frame",
            "Basket",
            "Doormat",
            "Mirror",
            "Rug",
        ],
    ),
    (
        "tools",
        890,
        [
            "Hammer",
            "Screwdriver Set",
            "Tape Measure",
            "Pliers",
            "Spirit Level",
            "Hand Saw",
            "Wrench",
            "Drill Bits",
            "Clamp",
            "Utility Knife",
        ],
    ),
];

const KINDS: [(&str, i64); 10] = [
    ("Classic", 0),
    ("Compact", 120),
    ("Nordic", 450),
    ("Heritage", 900),
    ("Pocket", 60),
    ("Studio", 700),
    ("Everyday", 30),
    ("Deluxe", 2400),
    ("Recycled", 210),
    ("Signature", 1500),
];

/// `SKU-0001` to `SKU-1000`.
pub fn seed() -> impl Iterator<Item = Seed> {
    let kinds_first = KINDS
        .iter()
        .flat_map(|kind| (0..10).map(move |nth| (kind, nth)));
    let all = kinds_first
        .flat_map(|(kind, nth)| CATEGORIES.iter().map(move |category| (kind, category, nth)));
    zip(1_u32.., all).map(
        |(number, ((kind, extra), (category, cheapest, things), nth))| Seed {
            sku: format!("SKU-{number:04}"),
            name: format!("{kind} {}", things[nth]),
            category,
            price: cheapest + extra + 100 * nth as i64,
        },
    )
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn there_are_a_thousand_different_products() {
        let seed: Vec<Seed> = seed().collect();
        assert_eq!(
            (seed.len(), seed[0].sku.as_str(), seed[999].sku.as_str()),
            (1000, "SKU-0001", "SKU-1000")
        );
        assert_eq!(
            seed.iter()
                .map(|product| &product.name)
                .collect::<HashSet<_>>()
                .len(),
            1000
        );
        assert!(seed.iter().all(|product| product.price > 0));
        assert_eq!(seed[0].name, "Classic Kettle");
    }
}
