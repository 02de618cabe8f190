//! Words for needle names.
//!
//! The two halves share no word, so that a model trained on one half meets only
//! unseen names in the other. None of these words occurs in the prose.

pub(crate) const EVAL_FIRST: &str = "
Amber Crimson Cobalt Ivory Jade Onyx Scarlet Indigo Topaz Opal Garnet Sapphire
Velvet Russet Cerulean Lunar Arctic Gallant Nimble Brazen Candid Dapper Feral
Gilded Vermilion Teal Mauve Ochre Sepia Umber Cyan Beryl Zircon Peridot Citrine
Agate Jasper Coral Pewter Bronze Titanium Mercurial Radiant Stellar Solar
Cosmic Astral Vivid Rapid Rustic Royal Sacred Savage Secretive Serene Sable
Spectral Sterling Stormy Sublime Tidal Tropical Twin Valiant Verdant Violet
Wandering Whimsical Wild Winged Witty Zealous Zesty Boreal Celestial Dusky
Ember Frosty Glacial Hallowed";

pub(crate) const EVAL_SECOND: &str = "
Falcon Badger Otter Lynx Heron Panther Dragon Wolf Tiger Raven Eagle Stallion
Bison Cobra Condor Coyote Cheetah Dolphin Ferret Gazelle Gecko Gorilla Hamster
Hedgehog Hyena Iguana Jackal Jaguar Kestrel Koala Lemur Leopard Llama Lobster
Macaw Magpie Mammoth Meerkat Mongoose Narwhal Ocelot Octopus Orca Osprey
Comet Glacier Canyon Beacon Citadel Pyramid Obelisk Lagoon Geyser Volcano
Nebula Meteor Galaxy Quasar Pulsar Zeppelin Catapult Chariot Galleon Gondola
Trident Sabre Lance Shield Gauntlet Helmet Scepter Chalice Goblet Pendulum
Sundial Turret Rampart Bastion Drawbridge Labyrinth";

pub(crate) const TRAIN_FIRST: &str = "
Azure Silver Golden Emerald Ruby Turquoise Magenta Maroon Lavender Lilac Fuchsia
Burgundy Khaki Olive Platinum Chrome Nickel Zinc Obsidian Quartz Granite Basalt
Malachite Lapis Moonstone Sunstone Bloodstone Tourmaline Amethyst Aquamarine
Diamond Pearl Ebony Taupe Copper Saffron Tawny Auburn Umbral
Ashen Polar Desert Alpine Coastal Oceanic Atomic Galvanic Sonic Phantom
Mystic Arcane Noble Regal Imperial Majestic Mighty Daring Dauntless Fearless
Heroic Intrepid Jovial Jolly Keen Lively Lucid Lucky Mellow Merry Nifty Plucky
Prancing Roaming Soaring Swift Tranquil Vagrant Velvety Virtuous Wily Zany
Zephyr";

pub(crate) const TRAIN_SECOND: &str = "
Hawk Fox Bear Lion Puma Moose Elk Stag Hare Weasel Stoat Beaver Walrus Manatee
Penguin Pelican Puffin Parrot Peacock Pheasant Quail Robin Salamander Scorpion
Shark Skunk Sloth Squid Stork Swan Tapir Tarantula Toucan Turtle Viper Vulture
Wallaby Warthog Whale Wolverine Wombat Yak Zebra Mantis Beetle Hornet Dragonfly
Cricket Asteroid Eclipse Horizon Aurora Island Peninsula Fjord Oasis Savanna
Tundra Monolith Fortress Palace Pagoda Cathedral Minaret Dagger Rapier Cutlass
Crossbow Javelin Halberd Cannon Musket Talisman Amulet Locket Tiara Gramophone
Accordion Banjo Cello";
