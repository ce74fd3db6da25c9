/*-
 * SPDX-License-Identifier: BSD-2-Clause
 *
 * Copyright (c) 2026 The vmm-workbench authors
 */

/* config.c: the tree of variables that bhyve_config(5) describes. */

#include <sys/param.h>

#include <stdio.h>
#include <string.h>

/* The part itself, from the tree under test. */
#include "part.h"

#include "unit.h"

static void
is(const char *path, const char *wanted)
{
	const char *got = get_config_value(path);

	if (wanted == NULL && got != NULL)
		miss("%s is \"%s\", and should not be there", path, got);
	else if (wanted != NULL && got == NULL)
		miss("%s is not there", path);
	else if (wanted != NULL)
		same(path, got, wanted);
}

static void
values(void)
{
	init_config();
	is("memory.size", NULL);
	set_config_value("memory.size", "256M");
	set_config_value("name", "unit");
	set_config_value("pci.0.31.0.device", "lpc");
	is("memory.size", "256M");
	is("name", "unit");
	is("pci.0.31.0.device", "lpc");
	is("memory.siz", NULL);
	is("pci.0.30.0.device", NULL);
	/* Setting it again changes it; "if unset" does not. */
	set_config_value("memory.size", "1G");
	is("memory.size", "1G");
	set_config_value_if_unset("memory.size", "2G");
	is("memory.size", "1G");
	set_config_value_if_unset("cpus", "4");
	is("cpus", "4");
}

static void
nodes(void)
{
	nvlist_t *node, *child;

	init_config();
	if (find_config_node("pci") != NULL)
		miss("there is a node before it was made");
	node = create_config_node("pci.0.3.0");
	if (node == NULL || find_config_node("pci.0.3.0") != node)
		miss("a node that was made is not found");
	if (create_config_node("pci.0.3.0") != node)
		miss("a node is made twice");
	set_config_value_node(node, "device", "virtio-blk");
	is("pci.0.3.0.device", "virtio-blk");
	same("of the node", get_config_value_node(node, "device"),
	    "virtio-blk");
	set_config_value_node_if_unset(node, "device", "nvme");
	is("pci.0.3.0.device", "virtio-blk");
	child = create_relative_config_node(node, "port.1");
	set_config_value_node(child, "type", "hd");
	is("pci.0.3.0.port.1.type", "hd");
	if (find_relative_config_node(node, "port.1") != child ||
	    find_relative_config_node(node, "port.2") != NULL)
		miss("nodes are found where they are not");
	if (create_config_node("pci..0") != NULL)
		miss("a node without a name is made");
	/* A variable has no children. */
	if (create_config_node("pci.0.3.0.device.x") != NULL)
		miss("a variable becomes a node");
}

static void
booleans(void)
{
	static const char *const yes[] = { "true", "on", "yes", "1", "TRUE",
	    "Yes" };
	static const char *const no[] = { "false", "off", "no", "0", "Off" };

	init_config();
	for (size_t i = 0; i < nitems(yes); i++) {
		set_config_value("x", yes[i]);
		if (!get_config_bool("x") || !get_config_bool_default("x",
		    false))
			miss("\"%s\" is false", yes[i]);
	}
	for (size_t i = 0; i < nitems(no); i++) {
		set_config_value("x", no[i]);
		if (get_config_bool("x") || get_config_bool_default("x", true))
			miss("\"%s\" is true", no[i]);
	}
	if (!get_config_bool_default("y", true) ||
	    get_config_bool_default("y", false))
		miss("a default is not used");
	set_config_bool("z", true);
	is("z", "true");
	set_config_bool("z", false);
	is("z", "false");
}

/* %(name) is replaced by another variable's value, also in a value. */
static void
references(void)
{
	init_config();
	set_config_value("name", "unit");
	set_config_value("disk", "/vm/%(name)/disk.img");
	set_config_value("path", "%(disk).bak");
	set_config_value("odd", "100%");
	set_config_value("escaped", "\\%(name) is %(name)");
	set_config_value("none", "a%(no such)b");
	set_config_value("open", "a%(name");
	is("disk", "/vm/unit/disk.img");
	is("path", "/vm/unit/disk.img.bak");
	is("odd", "100%");
	is("escaped", "%(name) is unit");
	is("none", "ab");
	is("open", "a%(name");
	/* A variable that refers to itself does not loop forever. */
	set_config_value("loop", "%(loop)x");
	if (get_config_value("loop") == NULL)
		miss("a reference to itself has no value");
	set_config_value("name", "other");
	is("disk", "/vm/other/disk.img");
}

const struct unit units[] = {
	{ "config.values", "variables have the values that were set", values },
	{ "config.nodes",
	    "nodes can be made, found and have variables", nodes },
	{ "config.booleans", "texts are parsed as true or false", booleans },
	{ "config.references", "variables are replaced in values", references },
};
const size_t nunits = nitems(units);
