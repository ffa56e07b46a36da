"""What the embedded marketplace sells: twelve departments. Plain data."""

from __future__ import annotations

from dataclasses import dataclass

from simulations.marketplace_text import (
    BEGINNERS,
    CHILDREN,
    ELEGANT,
    ENTHUSIASTS,
    FAMILIES,
    FUTURISTIC,
    INDUSTRIAL,
    MINIMALIST,
    NATURAL,
    OLDER,
    PLAYFUL,
    PROFESSIONALS,
    RUGGED,
    STUDENTS,
    VINTAGE,
)


@dataclass(frozen=True, slots=True)
class Kind:
    """One kind of product, e.g. a camping tent.

    `features` follow "with" or "has"; `materials` follow "made of"; `then` names the kinds of product
    that people tend to want after it.
    """

    noun: str
    features: tuple[str, ...]
    materials: tuple[str, ...]
    then: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Category:
    """A department of the shop; the tuples of int say which looks, users and themes fit it."""

    name: str
    styles: tuple[int, ...]
    audiences: tuple[int, ...]
    themes: tuple[int, ...]
    kinds: tuple[Kind, ...]


def _category(
    name: str, styles: tuple[int, ...], audiences: tuple[int, ...], themes: tuple[int, ...], table: str
) -> Category:
    """Read `table`: for each kind a line ``noun > then; then``, a line of features, a line of materials."""
    lines = [line.strip() for line in table.strip().splitlines()]
    kinds = []
    for first, features, materials in zip(lines[::3], lines[1::3], lines[2::3], strict=True):
        noun, then = first.split(" > ")
        kinds.append(Kind(noun, tuple(features.split("; ")), tuple(materials.split("; ")), tuple(then.split("; "))))
    return Category(name, styles, audiences, themes, tuple(kinds))


CATEGORIES = (
    _category(
        "Outdoor & Hiking",
        (RUGGED, MINIMALIST, FUTURISTIC, NATURAL, PLAYFUL, VINTAGE),
        (FAMILIES, BEGINNERS, ENTHUSIASTS, OLDER, STUDENTS),
        (0, 5, 6),
        """
hiking backpack > head torch; camping tent; hiking poncho
  a padded hip belt; a built-in rain cover; side pockets for bottles; a ventilated back panel
  ripstop nylon; waxed canvas; recycled sailcloth
camping tent > sleeping bag; camping stove
  colour-coded poles; a taped groundsheet; two covered porches; mesh windows on both sides
  coated polyester; ripstop nylon; dense cotton canvas
sleeping bag > camping stove; travel pillow
  a two-way zip; a draught collar; a roomy foot box; a compression sack
  soft recycled fibre; brushed cotton; light technical nylon
camping stove > head torch; espresso maker
  a folding pot stand; a wind shield; a fine flame control; a push-button igniter
  stainless steel; anodised aluminium; enamelled steel
head torch > hiking poncho; trail running vest
  a red night light; a tilting lamp; a washable strap; a charge that lasts forty hours
  tough polymer; brushed aluminium; recycled plastic
hiking poncho > hiking backpack; dog harness
  sealed seams; a peaked hood; a pack-away pouch; room for a rucksack underneath
  coated nylon; waxed cotton; recycled polyester
""",
    ),
    _category(
        "Cameras & Photography",
        (VINTAGE, MINIMALIST, FUTURISTIC, RUGGED, ELEGANT),
        (BEGINNERS, ENTHUSIASTS, STUDENTS, PROFESSIONALS),
        (5, 10, 0, 4),
        """
mirrorless camera > prime lens; camera tripod; camera bag
  a tilting screen; quick eye detection; two card slots; a quiet shutter
  magnesium alloy; brushed aluminium; leather-wrapped metal
prime lens > camera bag; photo printer
  a wide f/1.8 aperture; a smooth focus ring; a clicking aperture dial; a weather seal
  glass and anodised aluminium; glass and brass; glass in a composite barrel
camera tripod > photo printer; prime lens
  a quick-release plate; a spirit level; twist locks; a reversible centre column
  carbon fibre; anodised aluminium; ash wood and brass
camera bag > mirrorless camera; carry-on suitcase
  movable dividers; a side opening; a hidden back pocket; a wide shoulder strap
  waxed canvas; recycled nylon; vegetable-tanned leather
photo printer > picture frame; sketchbook
  a wireless connection; borderless prints; a slide-in paper tray; quick-dry ink
  recycled plastic; matt polymer; powder-coated steel
""",
    ),
    _category(
        "Audio & Music",
        (VINTAGE, MINIMALIST, FUTURISTIC, ELEGANT, INDUSTRIAL, PLAYFUL),
        (STUDENTS, ENTHUSIASTS, BEGINNERS, PROFESSIONALS),
        (12, 3, 1, 10, 4),
        """
wireless headset > travel pillow; studio microphone
  soft ear cushions; active noise cancelling; a folding hinge; a battery for two days
  matt polymer and memory foam; aluminium and leather; recycled plastic and felt
bookshelf speaker > turntable; wall shelf
  a warm, full bass; a silk dome; a bass control; a removable cloth grille
  walnut veneer; lacquered wood; powder-coated steel
turntable > bookshelf speaker; floor lamp
  a belt drive; a built-in amplifier; an adjustable counterweight; a dust cover
  oiled walnut; brushed aluminium; frosted acrylic
acoustic guitar > studio microphone; guitar stand
  a slim neck; low string action; a bright, open tone; a padded carry bag
  solid spruce; cedar and mahogany; maple
studio microphone > wireless headset; desk lamp
  a mute button; a pop filter; a shock mount; plug-and-play connection
  die-cast zinc; steel mesh and aluminium; matt polymer
guitar stand > acoustic guitar; notebook
  padded arms; a folding frame; rubber feet; room for a strap and picks
  bent beech; black steel; oiled oak
""",
    ),
    _category(
        "Kitchen & Cooking",
        (MINIMALIST, VINTAGE, ELEGANT, INDUSTRIAL, NATURAL, PLAYFUL),
        (FAMILIES, BEGINNERS, ENTHUSIASTS, OLDER, STUDENTS),
        (3, 2, 6, 12, 7),
        """
frying pan > chef's knife; cutting board
  an even heat base; a stay-cool handle; a pouring lip; a helper handle
  cast iron; carbon steel; stainless steel and copper
chef's knife > cutting board; frying pan
  a full tang; a hand-sharpened edge; a balanced grip; a curved blade for rocking cuts
  high-carbon steel and olive wood; stainless steel; layered steel and walnut
cutting board > serving platter; chef's knife
  a juice groove; non-slip feet; a hanging loop; a reversible surface
  acacia; end-grain oak; bamboo
stand mixer > serving platter; espresso maker
  a dough hook; a tilting head; ten speeds; a splash guard
  die-cast metal; enamelled steel; stainless steel
espresso maker > stand mixer; scented candle
  a steam wand; a pressure gauge; a removable water tank; a cup warmer
  brushed steel; polished aluminium; chrome and beech
serving platter > scented candle; herb growing kit
  a raised rim; two small handles; a heat-proof glaze; a matching dip bowl
  stoneware; porcelain; mango wood
""",
    ),
    _category(
        "Home Office",
        (MINIMALIST, INDUSTRIAL, ELEGANT, FUTURISTIC, VINTAGE, NATURAL),
        (PROFESSIONALS, STUDENTS, OLDER, ENTHUSIASTS),
        (4, 2, 1, 6, 10),
        """
standing desk > office chair; desk lamp
  a quiet motor; four memory heights; a cable tray; rounded front edges
  bamboo and steel; oak veneer; powder-coated steel
office chair > standing desk; mechanical keyboard
  a movable lumbar support; a breathable back; armrests that turn; soft castors
  recycled mesh; felt and aluminium; moulded plywood
desk lamp > notebook; mechanical keyboard
  a dimmer; a long swivel arm; a warm and a cold light; a charging port in the base
  brushed brass; powder-coated steel; ash wood
mechanical keyboard > wireless headset; office chair
  silent switches; a detachable cable; swappable keys; a volume wheel
  aluminium; recycled plastic; walnut and steel
notebook > calligraphy set; desk lamp
  numbered pages; thick dotted paper; two ribbon markers; a pocket at the back
  recycled paper and linen; stone paper; paper and vegan leather
""",
    ),
    _category(
        "Living & Decor",
        (MINIMALIST, VINTAGE, ELEGANT, INDUSTRIAL, NATURAL, PLAYFUL),
        (FAMILIES, PROFESSIONALS, STUDENTS, OLDER),
        (12, 3, 2, 7, 6),
        """
floor lamp > woven rug; cushion set
  a foot dimmer; a linen shade; a tilting head; a heavy, stable base
  brass; blackened steel; bent beech
woven rug > cushion set; wall shelf
  a non-slip back; hand-knotted fringes; a dense pile; a reversible pattern
  undyed wool; recycled cotton; jute
wall shelf > picture frame; scented candle
  hidden brackets; a raised edge; hooks underneath; a drilling template
  solid oak; steel and pine; bamboo
cushion set > scented candle; woven rug
  concealed zips; piped edges; washable covers; a plump filling
  washed linen; cotton velvet; organic cotton
scented candle > serving platter; floor lamp
  a cotton wick; a burning time of fifty hours; a cedar and fig scent; a reusable jar
  soy wax; beeswax; rapeseed wax
picture frame > wall shelf; watercolour set
  an acid-free mount; clear acrylic glass; hooks for both formats; a fold-out stand
  oak; black aluminium; gilded wood
""",
    ),
    _category(
        "Garden & Balcony",
        (NATURAL, VINTAGE, RUGGED, PLAYFUL, MINIMALIST, INDUSTRIAL),
        (BEGINNERS, OLDER, FAMILIES, ENTHUSIASTS),
        (2, 6, 11, 12, 7),
        """
raised planter > herb growing kit; hand pruner
  a drainage mat; a lower shelf; castors that lock; a waist-high bed
  larch; galvanised steel; recycled plastic
hand pruner > garden kneeler; watering can
  a sap groove; a soft-close spring; a safety catch; replaceable blades
  forged steel; steel and ash wood; steel and cork
watering can > bird feeder; raised planter
  a long, thin spout; a removable rose; a balanced handle; a litre scale
  galvanised steel; copper; recycled plastic
bird feeder > watering can; cat tree
  a squirrel guard; a wide perch; a lid that lifts for filling; a window mount
  cedar; powder-coated steel; recycled plastic
herb growing kit > watering can; chef's knife
  six kinds of seed; peat-free soil; a self-watering tray; wooden labels
  recycled paper pulp; terracotta; coconut fibre
garden kneeler > hand pruner; bird feeder
  a thick foam pad; two side handles; a tool pocket; a seat when turned over
  steel and foam; beech and canvas; recycled rubber
""",
    ),
    _category(
        "Toys & Games",
        (PLAYFUL, NATURAL, VINTAGE, MINIMALIST, FUTURISTIC),
        (CHILDREN, FAMILIES, STUDENTS),
        (8, 7, 3, 6),
        """
building block set > wooden train set; jigsaw puzzle
  one hundred pieces; a storage bag; rounded edges; wheels and hinges
  beech; recycled plastic; cork
board game > jigsaw puzzle; cushion set
  rules on a single page; a foldable board; two levels of difficulty; carved playing pieces
  recycled card and wood; linen-finish card; thick card
wooden train set > plush animal; building block set
  magnetic couplings; a double track; a turning bridge; painted wagons
  beech; maple; birch plywood
jigsaw puzzle > board game; watercolour set
  one thousand pieces; a poster to copy from; a sorting tray; a perfect snap fit
  recycled card; birch plywood; linen-finish card
plush animal > wooden train set; storybook lamp
  stitched eyes; a soft weighted belly; a washable cover; a secret pocket
  organic cotton; recycled fleece; wool felt
storybook lamp > plush animal; board game
  a sleep timer; a soft orange glow; a touch sensor; a rechargeable battery
  silicone; birch plywood; frosted glass
""",
    ),
    _category(
        "Fitness & Sport",
        (FUTURISTIC, MINIMALIST, RUGGED, PLAYFUL, NATURAL, ELEGANT),
        (BEGINNERS, ENTHUSIASTS, PROFESSIONALS, OLDER, STUDENTS),
        (9, 9, 6, 12),
        """
yoga mat > foam roller; resistance band set
  alignment marks; a non-slip surface; a carrying strap; extra cushioning for knees
  natural rubber; cork; recycled foam
dumbbell set > resistance band set; fitness tracker
  hexagonal heads; knurled grips; a stacking tray; quick-change plates
  cast iron; rubber and steel; vinyl and iron
resistance band set > yoga mat; dumbbell set
  five strengths; padded handles; a door anchor; a printed exercise plan
  natural latex; woven cotton; recycled rubber
fitness tracker > trail running vest; wireless headset
  a heart rate sensor; a bright screen; a battery for ten days; a waterproof case
  aluminium and silicone; steel and leather; recycled polymer
trail running vest > head torch; fitness tracker
  two soft flasks; reflective stripes; a whistle on the strap; breathable mesh
  light mesh; recycled polyester; ripstop nylon
foam roller > yoga mat; fitness tracker
  a textured surface; a hollow core; firm end caps; a guide to ten exercises
  recycled foam; cork; dense rubber
""",
    ),
    _category(
        "Pets",
        (PLAYFUL, NATURAL, MINIMALIST, RUGGED, ELEGANT),
        (FAMILIES, BEGINNERS, OLDER, PROFESSIONALS),
        (11, 2, 5, 6),
        """
dog harness > pet bed; pet carrier
  a padded chest plate; reflective piping; a handle on the back; four points of adjustment
  recycled webbing; waxed canvas; soft mesh
cat tree > pet bed; slow feeder bowl
  three platforms; a hanging ball; a hidden cave; a wall strap
  sisal and pine; felt and plywood; jute and beech
pet bed > slow feeder bowl; cat tree
  raised edges; a removable cover; an orthopaedic core; a non-slip base
  recycled fleece; corduroy; boiled wool
slow feeder bowl > dog harness; cat tree
  a maze pattern; a rubber foot; a dishwasher-safe finish; a shallow rim for short noses
  stoneware; bamboo fibre; stainless steel
pet carrier > pet bed; carry-on suitcase
  mesh windows; a top opening; a fleece floor; a seat belt loop
  recycled nylon; cotton canvas; felt
""",
    ),
    _category(
        "Bags & Travel",
        (MINIMALIST, ELEGANT, RUGGED, VINTAGE, PLAYFUL, FUTURISTIC),
        (PROFESSIONALS, FAMILIES, STUDENTS, OLDER),
        (5, 1, 0, 7),
        """
carry-on suitcase > packing cube set; passport wallet
  silent wheels; a laptop compartment; a telescopic handle; compression straps
  polycarbonate; recycled nylon; aluminium
packing cube set > travel pillow; carry-on suitcase
  double zips; a mesh top; a laundry pouch; a compression panel
  recycled ripstop; organic cotton; light mesh
travel pillow > passport wallet; wireless headset
  a clip for the strap; a chin support; a washable cover; a small stuff sack
  memory foam and cotton; recycled fleece; micro-bead filling and jersey
crossbody bag > passport wallet; notebook
  a wide strap; a magnetic flap; an inner card slot; a key loop
  vegetable-tanned leather; recycled nylon; waxed canvas
passport wallet > crossbody bag; packing cube set
  a shielded pocket; a pen loop; a boarding pass sleeve; room for four passports
  vegetable-tanned leather; cork; recycled polyester
""",
    ),
    _category(
        "Arts & Crafts",
        (NATURAL, VINTAGE, PLAYFUL, MINIMALIST, ELEGANT),
        (BEGINNERS, CHILDREN, ENTHUSIASTS, OLDER),
        (10, 8, 12, 7, 6),
        """
watercolour set > sketchbook; picture frame
  twenty-four colours; a folding palette; a water brush; refillable pans
  mineral pigments and tin; plant-based pigments and wood; pigments and recycled card
sketchbook > watercolour set; calligraphy set
  heavy textured paper; a lay-flat binding; an elastic band; a perforated edge
  cotton paper and linen; recycled paper; paper and kraft board
knitting kit > sewing machine; cushion set
  four balls of yarn; bamboo needles; a pattern booklet; stitch markers
  merino wool; organic cotton; alpaca
sewing machine > knitting kit; desk lamp
  sixty stitches; an automatic threader; a work light; a free arm for sleeves
  metal and polymer; enamelled steel; recycled plastic
calligraphy set > notebook; sketchbook
  four nibs; a bottle of black ink; a practice pad; a wooden pen holder
  beech and brass; glass; recycled card and steel
pottery tool set > serving platter; watercolour set
  loop tools in five sizes; a wire cutter; a smoothing rib; a canvas roll
  boxwood and steel; bamboo; stainless steel
""",
    ),
)
PLAIN = frozenset({
    "prime lens", "board game", "jigsaw puzzle", "herb growing kit", "watercolour set",
    "calligraphy set", "pottery tool set", "cutting board", "chef's knife",
})  # fmt: skip
"""Kinds that are not sold by colour."""
